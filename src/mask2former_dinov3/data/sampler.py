"""Decide which training sample comes when.

The order is a function of the seed alone, so any number of processes and any resumed run agree on it.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from .array_types import Floats, Ints

SampleKey = tuple[int, ...]
"""(epoch, index of the image), and for the second and further appearances of an image in an epoch their number, 1, …

The random changes of a sample follow from its key, so an image that is shown twice looks different each time.
"""


class EpochPlan:
    """The images of each epoch, shuffled again for each: one endless stream.

    Without repeat factors an epoch has every image once. With them an image of factor r appears floor(r) times, and
    once more with the probability of the rest, drawn from (seed, epoch) (arXiv:1908.03195, appendix B; rounded as
    detectron2's RepeatFactorTrainingSampler does). Epochs then differ in length.
    """

    def __init__(self, num_images: int, seed: int = 0, repeat_factors: Floats | None = None) -> None:
        """repeat_factors: (num_images,) numbers of 1 or more."""
        self.num_images, self.seed = num_images, seed
        self.repeat_factors = repeat_factors
        self._starts = [0]  # of the epochs, as far as they were asked for
        self._epoch = -1
        self._indices = self._copies = np.empty(0, dtype=np.int64)

    def start(self, epoch: int) -> int:
        """The position in the stream at which an epoch begins."""
        if self.repeat_factors is None:
            return epoch * self.num_images
        while len(self._starts) <= epoch:
            counts = self._draw_counts(self._generator(len(self._starts) - 1))
            self._starts.append(self._starts[-1] + int(counts.sum()))
        return self._starts[epoch]

    def locate(self, position: int) -> tuple[int, int]:
        """(epoch, place in it) of a position of the stream."""
        if self.repeat_factors is None:
            return divmod(position, self.num_images)
        while self._starts[-1] <= position:
            self.start(len(self._starts))
        epoch = bisect_right(self._starts, position) - 1
        return epoch, position - self._starts[epoch]

    def epochs_at(self, position: int) -> float:
        """Passes over the training images before a position of the stream."""
        epoch, place = self.locate(position)
        return epoch + place / (self.start(epoch + 1) - self.start(epoch))

    def key_at(self, position: int) -> SampleKey:
        """The sample at a position of the stream."""
        epoch, place = self.locate(position)
        if epoch != self._epoch:
            self._epoch = epoch
            self._indices, self._copies = self._shuffle(epoch)
        copy = int(self._copies[place]) if len(self._copies) else 0
        key = epoch, int(self._indices[place])
        return (*key, copy) if copy else key

    def _shuffle(self, epoch: int) -> tuple[Ints, Ints]:
        """The images of an epoch in their order, and the number of each appearance; without factors that is empty."""
        generator = self._generator(epoch)
        if self.repeat_factors is None:
            return generator.permutation(self.num_images), np.empty(0, dtype=np.int64)
        counts = self._draw_counts(generator)
        indices = np.repeat(np.arange(self.num_images), counts)
        copies = np.arange(len(indices)) - np.repeat(np.cumsum(counts) - counts, counts)
        order = generator.permutation(len(indices))
        return indices[order], copies[order]

    def _generator(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch])

    def _draw_counts(self, generator: np.random.Generator) -> Ints:
        """How often each image appears in the epoch of this generator, (num_images,)."""
        factors = np.asarray(self.repeat_factors)
        whole = np.floor(factors)
        counts: Ints = (whole + (generator.random(self.num_images) < factors - whole)).astype(np.int64)
        return counts


class TrainingOrder(Sampler[list[SampleKey]]):
    """Batches of sample keys for one process, from `first_step` on.

    Optimiser step s of the run takes positions s * G to (s + 1) * G - 1 of the stream of `EpochPlan`, with
    G = batch_size * accumulation * num_processes. A step may contain images of two epochs, so no batch is short and no
    image is left out.
    """

    def __init__(
        self,
        num_images: int,
        *,
        batch_size: int,
        accumulation: int = 1,
        rank: int = 0,
        num_processes: int = 1,
        seed: int = 0,
        first_step: int = 0,
        last_step: int,
        repeat_factors: Floats | None = None,
    ) -> None:
        """repeat_factors: see `EpochPlan`."""
        self.plan = EpochPlan(num_images, seed, repeat_factors)
        self.batch_size, self.accumulation = batch_size, accumulation
        self.rank, self.num_processes = rank, num_processes
        self.first_step, self.last_step = first_step, last_step

    @property
    def step_size(self) -> int:
        """Number of images in one optimiser step over all processes (G)."""
        return self.batch_size * self.accumulation * self.num_processes

    def in_batches_of(self, batch_size: int) -> TrainingOrder:
        """The same images in each step, in batches of another size, which divides the images of a process."""
        other = copy.copy(self)
        other.batch_size, other.accumulation = batch_size, self.batch_size * self.accumulation // batch_size
        return other

    def image_at(self, position: int) -> SampleKey:
        """The key of the sample at a position of the stream."""
        return self.plan.key_at(position)

    def epochs_at(self, step: int) -> float:
        """Passes over the training images after `step` optimiser steps."""
        return self.plan.epochs_at(step * self.step_size)

    def epochs_done(self, step: int) -> int:
        """Number of complete epochs after `step` optimiser steps."""
        return self.plan.locate(step * self.step_size)[0]

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in range(self.first_step, self.last_step):
            for part in range(self.accumulation):
                start = step * self.step_size + (part * self.num_processes + self.rank) * self.batch_size
                yield [self.image_at(start + offset) for offset in range(self.batch_size)]
