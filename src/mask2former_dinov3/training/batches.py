"""Batches of a run: read by workers, counted, and what happens when an image or a worker fails."""

from __future__ import annotations

import gc
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from ..canvas import padded_size
from ..config.train_config import TrainConfig
from ..data.coco import CocoData
from ..data.dataset import Batch, CocoInstanceDataset, collate
from ..data.statistics import statistics_of
from ..data.transforms import AUGMENTATIONS, Augmentation
from ..errors import DatasetError, OptionError, UserError, mark_shared, mismatch
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..model import loss_normalizers
from .bad_images import bad_images_allowed, too_many_unreadable
from .distributed import run_on_all, sum_over_processes
from .run import Run
from .signals import ignore_signals

logger = logging.getLogger(__name__)
SHARED_MEMORY = Path("/dev/shm")
PREFETCHED = 2  # batches that each worker holds ready: the default of DataLoader


def training_dataset(
    config: TrainConfig, processor: Mask2FormerDinov3ImageProcessor, data: CocoData
) -> CocoInstanceDataset:
    """The training images on the canvas, augmented as `config` says."""
    return CocoInstanceDataset(
        data,
        image_height=config.image_height,
        image_width=config.image_width,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
        options=processor.read_options,
        augmentation=Augmentation(**{name: getattr(config, name) for name in AUGMENTATIONS}),
        seed=config.seed,
        skip_unreadable=config.max_bad_images > 0,
    )


@contextmanager
def read_batches(run: Run) -> Iterator[Iterator[Batch]]:
    """This process's batches from the run's current step to its last one; the workers end with the block.

    The workers are ended explicitly: after an error its traceback keeps their iterator alive until Python ends, which
    would then wait for them for ever, since they ignore the signal by which it ends them. After an error they are
    killed: one that died may hold a lock that the others wait for.
    """
    config = run.config
    loader = DataLoader(
        training_dataset(config, run.processor, run.data["train"]),
        batch_sampler=run.order,
        collate_fn=collate,
        worker_init_fn=ignore_signals,
        num_workers=config.dataloader_num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own, so that starting workers does not move the random points
    )
    batches = start_workers(loader)
    try:
        yield batches
    except BaseException:
        _kill_workers(batches)
        raise
    finally:
        if config.dataloader_num_workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]  # no public name for it


def start_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """The iterator of a loader. Its workers leave the objects they share with this process out of Python's collector.

    A collection writes to every object that it looks at, and so copies its memory page, in every worker.
    """
    gc.collect()
    gc.freeze()
    try:
        return iter(loader)
    finally:
        gc.unfreeze()  # in this process alone


def _kill_workers(batches: object) -> None:
    """Kill the workers of a DataLoader's iterator, of which torch would otherwise report the death as an error."""
    if getattr(batches, "_worker_pids_set", False):
        signal_handling._remove_worker_pids(id(batches))  # type: ignore[attr-defined]  # no public name for it
        vars(batches)["_worker_pids_set"] = False
        for worker in vars(batches)["_workers"]:
            worker.kill()


def explain_dead_worker(error: BaseException) -> UserError | None:
    """The error for torch's message that a worker has died, which it raises wherever the process just is."""
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
        return None
    reason = mismatch("processes that read images", f"the death of one ({str(error).partition('. ')[0]})", SHM_ADVICE)
    return UserError(f"dataloader_num_workers: {reason}")


def read_window(run: Run, batches: Iterator[Batch]) -> tuple[list[Batch], Tensor]:
    """The batches of one optimiser step, and what its losses are divided by (see `loss_normalizers`).

    The normalisers are sums over all processes. Images that cannot be read are replaced by others (see
    `CocoInstanceDataset`), counted and named. Raises DatasetError when there are more of them than `max_bad_images`
    allows, UserError when a worker has died.
    """

    def read() -> list[Batch]:
        try:
            return [next(batches) for _ in range(run.config.gradient_accumulation_steps)]
        except DatasetError as error:  # a worker's error arrives with its traceback as text
            raise DatasetError(str(error).rpartition("DatasetError: ")[2].strip()) from None
        except RuntimeError as error:
            raise explain_dead_worker(error) or error from None

    window = run_on_all(run.accelerator, read)
    known = run.state.unreadable
    bad = {str(key): text for batch in window for key, text in batch["unreadable"].items() if str(key) not in known}
    model_config = run.model.config
    labels = [classes for batch in window for classes in batch["class_labels"]]
    local = loss_normalizers(labels, model_config.num_queries, model_config.no_object_weight)
    summed = sum_over_processes(run.accelerator, torch.cat([local, torch.tensor([float(len(bad))])]))
    if summed[2]:
        _count_unreadable(run, bad)
    return window, summed[:2].float()


def _count_unreadable(run: Run, bad: dict[str, str]) -> None:
    """Note images of this step that cannot be read. Raises DatasetError, on all processes, for one too many."""
    known, count = run.state.unreadable, len(run.data["train"].images)
    allowed = bad_images_allowed(run.config.max_bad_images, count)
    for found in gather_object([bad]):
        known.update(found)
    for text in {text for text in bad.values()}:
        logger.warning("an image is skipped, another takes its place: %s", text)
    if len(known) > allowed:
        raise mark_shared(too_many_unreadable("train", known.values(), allowed, count))


SHM_ADVICE = (
    "memory or shared memory may be full: start a container with --shm-size 8g or --ipc=host, or train with "
    "--dataloader_num_workers 0"
)


def check_shared_memory(run: Run) -> None:
    """Raise OptionError when the batches that the workers hold ready do not fit into the system's shared memory.

    A worker is killed when it writes into a full one. Containers start with 64 MB.
    """
    config, data = run.config, run.data["train"]
    if not config.dataloader_num_workers or not SHARED_MEMORY.is_dir():
        return
    height, width = padded_size(config.image_height, config.image_width)
    masks = statistics_of(data).instances / len(data.images)
    batch = run.order.batch_size * height * width * (3 * 4 + 1 + masks)  # float32, bool, uint8
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    needed = batch * config.dataloader_num_workers * PREFETCHED * processes
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise OptionError(
            "dataloader_num_workers",
            f"workers whose batches fit into {SHARED_MEMORY} ({free / 1e6:.0f} MB are free)",
            f"{config.dataloader_num_workers}, which need about {needed / 1e6:.0f} MB",
            SHM_ADVICE,
        )
