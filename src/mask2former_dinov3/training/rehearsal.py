"""Before the first step, try what the run will need: a step with the fullest images where the batch is to be found,
evaluation, saving, room on the disk, shared memory.

What fails here would otherwise fail after hours.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

import numpy as np

from ..atomic_files import remove_folder
from ..data.array_types import Ints
from ..errors import CheckpointError, OptionError, mark_shared, mismatch
from ..evaluation.coco_ap import evaluate_coco
from ..inference.compiled_predict import without_compiling
from ..model_folder.folder import save_model_folder
from .batch_size import fit_batch
from .batches import check_shared_memory
from .checkpoint import list_checkpoints
from .distributed import run_on_main
from .run import Run
from .run_folder import REHEARSAL
from .signals import StopRequest

BY_AREA = ("APs", "APm", "APl")


def rehearse(run: Run, stop: StopRequest) -> Run:
    """Find the batch, evaluate two images of each split, save a model folder and remove it, and ask for room.

    Returns the run with its batch; nothing else of it has changed, and nothing is left behind. Raises UserError for
    what would fail later, and torch's error for full memory.
    """
    run_on_main(run.accelerator, lambda: _check_before_work(run))
    run = fit_batch(run)
    run_on_main(run.accelerator, lambda: check_shared_memory(run))
    seconds: dict[str, float] = {}
    for split in ("valid", "test"):
        if split in run.data:
            seconds[split] = _evaluate_two(run, split, stop)
    run.budget.test_seconds = seconds.get("test", 0.0)
    began = time.monotonic()
    run_on_main(run.accelerator, lambda: _save_once(run))
    run.budget.checkpoint_seconds = seconds.get("valid", 0.0) + time.monotonic() - began
    _check_hours(run)
    return run


def _check_before_work(run: Run) -> None:
    if "valid" in run.data:
        check_metric(run)
    elif run.config.early_stopping_patience:
        got = f"{run.config.early_stopping_patience}, which counts evaluations"
        raise OptionError("early_stopping_patience", "null for a run without validation data", got)
    check_room(run)


def _evaluate_two(run: Run, split: str, stop: StopRequest) -> float:
    """Evaluate the largest image, which needs the most memory, and the smallest; returns the seconds of all images."""
    images = run.data[split].images
    pixels = images.columns.sizes[images.rows].astype(np.int64).prod(axis=1)
    seconds: list[float] = []
    are_read = False
    chosen = (int(pixels.argmax()), int(pixels.argmin()))
    for place in chosen:
        began = time.monotonic()
        with without_compiling(run.scored_model):  # the time of an evaluation is that of the later ones
            _, _, scored = run.evaluate(split, stop, images.take([place]))
        seconds.append(time.monotonic() - began)
        are_read = are_read or bool(scored.image_ids)
    if not are_read:  # two that cannot be read may be too many, where one is not
        run.evaluate(split, stop, images.take(sorted(set(chosen))))
    whole = seconds_of_all(pixels, chosen, seconds)
    return whole / int(run.accelerator.num_processes)


def seconds_of_all(pixels: Ints, chosen: tuple[int, int], seconds: Sequence[float]) -> float:
    """Seconds of all images of so many pixels (I,), by those of two: a part of every image, a part by its pixels.

    chosen: the largest and the smallest image, whose `seconds` are known.
    """
    large, small = pixels[list(chosen)]
    by_pixel = max(0.0, seconds[0] - seconds[1]) / max(1, large - small)
    return float(len(pixels) * seconds[1] + by_pixel * (pixels - small).sum())


def _check_hours(run: Run) -> None:
    """Raise OptionError when `max_hours` leaves no time for a step before the last evaluation and the report."""
    run.plan_end()
    if run.state.step or not run.is_out_of_time:
        return
    budget = run.budget
    needed = (budget.used + 2 * budget.checkpoint_seconds + budget.test_seconds) / 3600
    expected = f"more than the {needed:.2g} hours that the start, one evaluation and the report take"
    advice = "raise it, or evaluate on fewer images"
    raise mark_shared(OptionError("max_hours", expected, run.config.max_hours, advice))


def check_metric(run: Run) -> None:
    """Raise OptionError when the validation data have no instance that the metric of the best model counts."""
    data, metric = run.data["valid"], run.config.metric_for_best_model
    if metric in BY_AREA:
        ids = [image.id for image in data.images]
        is_defined = evaluate_coco(data.source or data.annotations, [], image_ids=ids)[metric] >= 0
    else:
        is_defined = any(not one.iscrowd for image in data.images for one in image.annotations)
    if not is_defined:
        got = f"{metric}, of which they have no instance"
        advice = "choose AP" if metric in BY_AREA else "add images with instances, or set --valid-split 0"
        raise OptionError("metric_for_best_model", "a metric that is defined on the validation data", got, advice)


def check_room(run: Run) -> None:
    """Raise CheckpointError when the disk has no room for the checkpoints and models that the run keeps.

    A new checkpoint is complete before an old one is removed, so there is one more for a moment.
    """
    checkpoint, folder = _expected_sizes(run)
    saves = _count_saves(run)
    kept = saves if run.config.save_total_limit is None else min(saves, run.config.save_total_limit + 1)
    there = sum(
        file.stat().st_size
        for place in [*list_checkpoints(run.output_dir), run.output_dir / "best", run.output_dir / "last"]
        for file in place.rglob("*")
        if file.is_file()
    )
    needed = kept * checkpoint + 3 * folder - there
    free = shutil.disk_usage(run.output_dir).free
    if needed > free:
        expected = f"room for {kept} checkpoints of {checkpoint / 1e9:.2f} GB, best/ and last/: {needed / 1e9:.1f} GB"
        advice = "make room, choose another --output-dir, or lower --save-total-limit"
        raise CheckpointError(f"{run.output_dir}: {mismatch(expected, f'{free / 1e9:.1f} GB free', advice)}")


def _expected_sizes(run: Run) -> tuple[int, int]:
    """Bytes of a checkpoint and of a model folder: weights, and of trained ones two moments and perhaps an average."""
    weights = sum(one.numel() * one.element_size() for one in run.model.state_dict().values())
    trained = sum(one.numel() * 4 for one in run.model.parameters() if one.requires_grad)
    return weights + (3 if run.averaged else 2) * trained, weights


def _count_saves(run: Run) -> int:
    """How many checkpoints the rest of the run writes."""
    every, step, last = run.config.checkpointing_steps, run.state.step, run.order.last_step
    if every is None:
        return 1
    if every == "epoch":
        return max(1, run.order.epochs_done(last) - run.order.epochs_done(step))
    return max(1, last // int(every) - step // int(every))


def _save_once(run: Run) -> None:
    folder = run.output_dir / REHEARSAL
    save_model_folder(run.scored_model, run.processor, folder, {}, run.description, run.config.with_code)
    remove_folder(folder)
