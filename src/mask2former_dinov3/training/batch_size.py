"""`per_device_train_batch_size: "auto"`: the largest batch whose step fits into the memory of the device.

`gradient_accumulation_steps` then says how many images an optimiser step has in each process. The batch divides this
number, so a step has the same images as before, and only memory and speed change.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import cycle, islice, pairwise
from pathlib import Path

import numpy as np
import torch

from ..config.train_config import TrainConfig
from ..data.crops import crop_counts
from ..data.dataset import Sample, collate
from ..data.faults import count_of
from ..inference.compiled_predict import without_compiling
from ..model import loss_normalizers
from .batches import training_dataset
from .checkpoint import read_state
from .device_memory import SHARE, peak_memory, resident_memory, usable_memory
from .distributed import run_on_all, sum_over_processes
from .optimizer_step import backward_batch
from .resume import get_rng_state, set_rng_state
from .run import Run

logger = logging.getLogger(__name__)
MOST_ON_CPU = 4
"""A CPU computes one image after the other: larger batches take memory and hardly save time (docs/recipes.md)."""


def images_per_step(config: TrainConfig) -> int:
    """Images of an optimiser step in each process."""
    batch, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    return batch * accumulation if isinstance(batch, int) else accumulation


def keep_stored_batch(config: TrainConfig, checkpoint: Path, num_processes: int) -> TrainConfig:
    """The configuration of a run that goes on, with the batch of its checkpoint instead of "auto".

    On another number of processes, the largest batch up to the stored one that divides their part of a step. Raises
    CheckpointError for a damaged checkpoint.
    """
    if isinstance(config.per_device_train_batch_size, int):
        return config
    state, options = read_state(checkpoint)
    stored = options.get("per_device_train_batch_size")
    images = max(1, state.step_size // num_processes)  # a remainder is refused when the checkpoint is compared
    most = stored if isinstance(stored, int) else 1
    batch = max(size for size in _divisors(images) if size <= most)
    logger.info("per_device_train_batch_size: %d, as in %s", batch, checkpoint)
    return _with_batch(config, batch, images)


def fit_batch(run: Run) -> Run:
    """The run with a number instead of "auto"; every process must call this before the first step.

    Does whole steps (forward, backward, optimiser) with batches of the fullest images, each larger than the one before,
    until one does not fit on some process. Weights, optimiser and random states are afterwards as before. Raises
    torch's error for full memory when one image does not fit.
    """
    config, device = run.config, run.accelerator.device
    if isinstance(config.per_device_train_batch_size, int):
        return run
    images = images_per_step(config)
    sizes = [size for size in _divisors(images) if device.type == "cuda" or size <= MOST_ON_CPU]
    fullest = _fullest_samples(run)
    samples = [next(fullest)]
    usable, before = int(usable_memory(device) * SHARE), resident_memory()
    peaks: dict[int, int] = {}

    def fits(size: int) -> bool:
        if device.type != "cuda" and _expected_peak(peaks, size, before) > usable:
            return False  # a CPU's memory is not tried out: the system would end the process
        samples.extend(islice(fullest, size - len(samples)))
        peak = peak_memory(device, lambda: _try_step(run, samples[:size]))
        if peak is None or (peak > usable and size > 1):
            return False
        peaks[size] = peak
        return True

    best = 1
    with _unchanged(run), without_compiling(run.model):
        # The first step allocates the optimiser's averages, which all other steps have beside them.
        run_on_all(run.accelerator, lambda: _try_step(run, samples[:1]))
        for size in sizes:
            fails = not run_on_all(run.accelerator, partial(fits, size))
            if int(sum_over_processes(run.accelerator, torch.tensor([float(fails)]))[0]):
                break
            best = size
    more = next((size for size in sizes if size > best), None)
    reason = "" if more is None else f"; {more} do not fit into {100 * SHARE:.0f} % of it"
    if more is None and best < images:
        reason = "; more at a time are hardly faster on a CPU"
    logger.info(
        "per_device_train_batch_size: %d, with gradient_accumulation_steps %d (%s per optimiser step%s): the fullest "
        "images, with up to %s, take %.2g of %.2g GB%s",
        best,
        images // best,
        count_of(images, "image"),
        " and process" if run.accelerator.num_processes > 1 else "",
        count_of(max(len(sample["class_labels"]) for sample in samples), "instance"),
        peaks.get(best, 0) / 1e9,
        usable / SHARE / 1e9,
        reason,
    )
    return replace(run, config=_with_batch(config, best, images), order=run.order.in_batches_of(best))


def _expected_peak(peaks: Mapping[int, int], size: int, before: int) -> int:
    """Bytes that a batch will take, by those of smaller ones. before: bytes of the process before the first."""
    known = sorted(peaks.items())
    if not known:
        return 0
    (last, peak), growths = known[-1], [known[0][1] - before]
    growths += [(b - a) // (n - m) for (m, a), (n, b) in pairwise(known)]
    return peak + max(0, *growths[-2:]) * (size - last)


def _with_batch(config: TrainConfig, batch: int, images: int) -> TrainConfig:
    return config.model_copy(
        update={"per_device_train_batch_size": batch, "gradient_accumulation_steps": images // batch}
    )


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _fullest_samples(run: Run) -> Iterator[Sample]:
    """The training images with the most instances, the fullest first, again from the first after the last one.

    The largest come first among equals. The canvas shows the whole image, or at its own scale the middle, whose
    instances are repeated up to the number in the fullest crop. With `copy_paste`, each has its instances twice: it may
    get those of an image that is as full.
    """
    images = run.data["train"].images
    pixels = images.columns.sizes[images.rows].astype(np.int64).prod(axis=1)
    dataset = training_dataset(run.config, run.processor, run.data["train"])
    dataset.augmentation = None
    counts = crop_counts(images, dataset.canvas, dataset.options.factor, run.config.scale_min)
    most = 0 if dataset.options.factor is None else int(counts.max())
    for place in cycle(np.lexsort((-pixels, -counts)).tolist()):
        sample = dataset[place]
        shown = len(sample["class_labels"])
        repeated = torch.arange(max(shown, most) if shown else 0) % max(shown, 1)
        if run.config.copy_paste:
            repeated = repeated.repeat(2)
        if len(repeated) > shown:
            sample["mask_labels"], sample["class_labels"] = (
                sample["mask_labels"][repeated],
                sample["class_labels"][repeated],
            )
        yield sample


def _try_step(run: Run, samples: Sequence[Sample]) -> None:
    """A whole step of this process alone: without gradients of others, for which a process without memory never waits.

    It goes through the model itself: wrapped by DDP, a backward pass would exchange them.
    """
    batch = collate(samples)
    model = run.model
    normalizers = loss_normalizers(batch["class_labels"], model.config.num_queries, model.config.no_object_weight)
    backward_batch(run, model, batch, normalizers)
    run.accelerator.clip_grad_norm_(model.parameters(), run.config.max_grad_norm or float("inf"))
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)


@contextmanager
def _unchanged(run: Run) -> Iterator[None]:
    """Leave weights, optimiser, gradient scaler and random states as they are, whatever steps the block does.

    With a learning rate of 0 AdamW adds 0 to every weight; its averages are new, so they are dropped.
    """
    groups, scaler = run.optimizer.param_groups, run.accelerator.scaler
    rates, rng_state = [group["lr"] for group in groups], get_rng_state()
    scaling = None if scaler is None else scaler.state_dict()
    run.model.train()
    for group in groups:
        group["lr"] = 0.0
    try:
        yield
    finally:
        run.optimizer.zero_grad(set_to_none=True)
        run.optimizer.state.clear()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        if scaler is not None:
            scaler.load_state_dict(scaling)
        set_rng_state(rng_state)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
