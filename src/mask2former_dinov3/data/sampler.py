"""Decide which training sample comes when.

The order is a function of the seed alone, so any number of processes and any resumed run agree on it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class TrainingOrder(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for one process, from `first_step` on.

    All training images, shuffled again for each epoch, form one endless stream; optimiser step s of the run takes
    positions s * G to (s + 1) * G - 1, with G = batch_size * accumulation * num_processes. A step may contain images of
    two epochs, so no batch is short and no image is left out.
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
    ) -> None:
        self.num_images, self.seed = num_images, seed
        self.batch_size, self.accumulation = batch_size, accumulation
        self.rank, self.num_processes = rank, num_processes
        self.first_step, self.last_step = first_step, last_step
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    @property
    def step_size(self) -> int:
        """Number of images in one optimiser step over all processes (G)."""
        return self.batch_size * self.accumulation * self.num_processes

    def in_batches_of(self, batch_size: int) -> TrainingOrder:
        """The same images in each step, in batches of another size, which divides the images of a process."""
        other = copy.copy(self)
        other.batch_size, other.accumulation = batch_size, self.batch_size * self.accumulation // batch_size
        return other

    def image_at(self, position: int) -> tuple[int, int]:
        """(epoch, index of the image) at a position of the stream."""
        epoch, offset = divmod(position, self.num_images)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
        return epoch, int(self._permutation[offset])

    def epochs_done(self, step: int) -> int:
        """Number of complete epochs after `step` optimiser steps."""
        return step * self.step_size // self.num_images

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first_step, self.last_step):
            for part in range(self.accumulation):
                start = step * self.step_size + (part * self.num_processes + self.rank) * self.batch_size
                yield [self.image_at(start + offset) for offset in range(self.batch_size)]
