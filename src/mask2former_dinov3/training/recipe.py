"""Suggest a recipe from what a data set holds, every option with its reason as a sentence.

Reasons are of three kinds: measured on this data; measured earlier by this project (docs/log.md, docs/finetuning.md);
taken from the published recipe. Where none of them is known the option is left at its default.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..atomic_files import write_text
from ..config.presets import FEW, FROM_SCRATCH, PUBLISHED, SPLIT_OPTIONS
from ..config.recipe_files import read_recipe
from ..config.train_config import TrainConfig, load_config
from ..data.achievable_ap import mask_ceilings
from ..data.coco import CocoData
from ..data.crops import crop_counts
from ..data.faults import count_of
from ..data.object_sizes import ObjectSizes, keeping_scale, measure_objects
from ..errors import DatasetError, mismatch
from .build_model import STRIDE_4_AP, queries_for

GPU_SIDES = (256, 384, 512, 640, 768, 1024)  # the longer side of the canvas; memory was measured at 1024
CPU_SIDES = (256, 320, 384, 512)
POINTS = 12_544  # at which published Mask2Former compares masks
STEP_IMAGES = 16  # per optimiser step in the published recipe
CPU_STEP_IMAGES = 4  # as in docs/log.md; sixteen of 384 x 512 with a frozen ViT-S+ took three minutes of one core
READING = ("value_range", "page", "channels", "extra_images", "image_scale")  # options that say how images are read
FEW_IMAGES = 1_000
MANY_IMAGES = 10_000  # "tens of thousands" in docs/finetuning.md
_LOOKED_AT_IMAGES = 5_000  # of which objects are measured, evenly spread

# GB per image of 1024 x 1024 in bf16, and GB that do not depend on the batch (docs/finetuning.md, H200).
FROZEN_MEMORY = (2.1, 0.5)
TRAINED_MEMORY = (3.3, 0.8)
CONTEXT_MEMORY = 1.0
FINE_MASKS = (
    10.5 / 7.4
)  # seeds, matching on pixels, adapter and masks at stride 2, against the published model (log.md)
SEEN_ON_CPU = 3_400  # images after which the curve of the nuclei is flat (log.md, "The recipe on the validation files")
SEEN_ON_GPU = 13_000  # log.md, "Longer training on a GPU"


class Choice(NamedTuple):
    """One option of a recipe with the sentence that says why."""

    option: str
    value: object
    reason: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """Options for a data set and a machine.

    name: the recipe that it starts from. fixed: the options of that recipe that the data does not decide, and the paths
    of the data. choices: the others.
    """

    name: str
    choices: tuple[Choice, ...]
    fixed: dict[str, object]

    @property
    def options(self) -> dict[str, object]:
        """The options as `train --config` reads them, with the reasons in `description`."""
        reasons = " ".join(f"{one.option}: {one.reason}" for one in self.choices)
        text = f"Suggested by check-data, from the recipe {self.name}. {reasons}"
        return {**self.fixed, "description": text} | {one.option: one.value for one in self.choices}

    def text(self) -> str:
        """The recipe for people: a line per choice."""
        return "\n".join(
            f"{one.option}: {json.dumps(one.value, ensure_ascii=False)}\n    {one.reason}" for one in self.choices
        )

    def write(self, path: Path) -> None:
        """Write the JSON file. Raises ConfigError if `load_config` would refuse it, CheckpointError if it cannot be
        written."""
        load_config(None, self.options)
        write_text(path, json.dumps(self.options, indent=4, ensure_ascii=False) + "\n")


class _Facts(NamedTuple):
    """What the choices follow from. memory: GB of the GPU, None for a CPU; most: instances in one image. factor: the
    scale of images that are not fitted into the canvas (`ReadOptions.factor`)."""

    name: str  # of the recipe
    data: CocoData
    memory: float | None
    sizes: ObjectSizes  # at a canvas of one pixel: `fits` are 1 / longer side
    images: int
    most: int
    factor: float | None

    @property
    def from_scratch(self) -> bool:
        """Whether the small network with random weights is trained."""
        return self.name == FROM_SCRATCH


def suggest_recipe(
    data: CocoData | None, config: TrainConfig, gpu_memory: float | None = None, *, name: str | None = None
) -> Recipe:
    """A recipe for a training split.

    config: names the data; options that were given to it are kept, so what follows from them fits. gpu_memory: GB of
    the GPU to plan for; None: of this machine's, or for a CPU without one. name: of the recipe to start from; None: by
    the GPU and the number of images. Raises DatasetError when there is nothing to train on.
    """
    sizes = None if data is None else measure_objects(data, (1, 1), _LOOKED_AT_IMAGES)
    if data is None or sizes is None or not len(sizes.areas):
        raise DatasetError(f"suggest: {mismatch('a train split with objects to measure', 'none')}")
    is_here = gpu_memory is None  # else the recipe is for another machine
    gpu_memory = memory_of_gpu() if gpu_memory is None else gpu_memory
    images = len(data.images)
    first = _choose_base(images, gpu_memory)
    base = read_recipe(name or first.value)
    if name == PUBLISHED:
        return Recipe(name, (), base | _paths_of(config))
    most = int(data.images.instance_counts().max())
    facts = _Facts(name or first.value, data, gpu_memory, sizes, images, most, config.read_options.factor)
    given = {option: getattr(config, option) for option in config.model_fields_set}
    canvas, ceilings, reason = _choose_canvas(facts, given)
    choices = [
        *([Choice("backbone", base["backbone"], first.reason)] if name is None else []),
        Choice("image_height", canvas[0], reason),
        Choice("image_width", canvas[1], "as image_height."),
        *_choose_masks(facts, canvas, ceilings),
        *_choose_scales(facts, canvas),
        *_choose_queries(facts, canvas),
    ]
    choices += _choose_schedule(facts, canvas, {**base, **{one.option: one.value for one in choices}, **given})
    if gpu_memory is None and not facts.from_scratch:
        choices.append(Choice("mixed_precision", None, "no GPU here: as set by accelerate, else float32."))
    if is_here:
        choices += _choose_workers(base)
    chosen = {one.option for one in choices}
    fixed = {key: value for key, value in base.items() if key not in chosen}
    return Recipe(facts.name, tuple(choices), fixed | _paths_of(config))


class _Base(NamedTuple):
    """The recipe to start from, with the sentence that says why."""

    value: str
    reason: str


def memory_of_gpu() -> float | None:
    """GB of memory of this machine's first GPU, None without one."""
    return torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else None


def _choose_base(images: int, memory: float | None) -> _Base:
    if memory is None:
        text = (
            "no GPU here (`check-data --suggest FILE --gpu-memory GB` plans for one): a small network with random "
            "weights, which two CPU cores train in minutes (docs/log.md)."
        )
        return _Base(FROM_SCRATCH, text)
    weights = (
        f"DINOv3 ViT-S+ with {memory:.0f} GB; its memory was measured (docs/finetuning.md). The weights are "
        "gated: accept their licence, or set backbone to a local folder. ViT-L needs about twice the memory."
    )
    if images >= MANY_IMAGES:
        return _Base("full", f"{weights} {images:,} training images: all of it is trained, with layer-wise decay.")
    name = FEW if images < FEW_IMAGES else "frozen"
    return _Base(name, f"{weights} {images:,} training images are fewer than {MANY_IMAGES:,}: it stays frozen.")


def _choose_canvas(facts: _Facts, given: Mapping[str, object]) -> tuple[tuple[int, int], dict[int, float], str]:
    """The smallest canvas on which masks can reach an AP of 0.8, not below the images' own size where it is allowed.

    given: the user's options; a canvas among them is kept.
    """
    shapes = np.array([(record.height, record.width) for record in facts.data.images], np.float64)
    longer = float(np.median(shapes.max(1)))
    sides = CPU_SIDES if facts.from_scratch or facts.memory is None else GPU_SIDES
    strides = (2, 4)
    if "image_height" in given and "image_width" in given:
        own = (int(str(given["image_height"])), int(str(given["image_width"])))
        return own, mask_ceilings(facts.data, own, strides, factor=facts.factor), "as given."
    start = next((side for side in sides if side >= min(longer, sides[-1])), sides[-1])
    if facts.from_scratch:
        start = sides[0]
    best: tuple[tuple[int, int], dict[int, float]] | None = None
    for side in (one for one in sides if one >= start):
        canvas = _canvas_of(shapes, side)
        best = canvas, mask_ceilings(facts.data, canvas, strides, factor=facts.factor)
        if facts.factor is not None or best[1].get(2 if facts.from_scratch else 4, 1.0) >= STRIDE_4_AP:
            break
    assert best is not None  # `sides` is not empty
    canvas, ceilings = best
    reached = ", ".join(f"{value:.2f} at stride {stride}" for stride, value in ceilings.items())
    enough = max(ceilings.values(), default=1.0) >= STRIDE_4_AP
    shows = "has their shape" if facts.factor is None else f"shows crops at image_scale {facts.factor:g}"
    text = (
        f"the images' longer side is {longer:.0f} pixels (median); a canvas of {canvas[0]} x {canvas[1]} "
        f"{shows}, and masks can reach an AP of {reached} on it (measured on this data), "
    )
    text += f"where {STRIDE_4_AP:g} is asked for" if enough else f"less than {STRIDE_4_AP:g}: cut the images into tiles"
    text += "." if sides[-1] < GPU_SIDES[-1] else "; larger canvases than 1024 have not been measured."
    return canvas, ceilings, text


def _canvas_of(shapes: np.ndarray[tuple[int, ...], np.dtype[np.float64]], side: int) -> tuple[int, int]:
    """The canvas (height, width) with this longer side and the images' median shape, in multiples of 32.

    Square where a tenth of the images lies across the others.
    """
    ratio = float(np.median(shapes[:, 0] / shapes[:, 1]))
    upright = float((shapes[:, 0] > shapes[:, 1]).mean())
    if 0.1 <= upright <= 0.9:
        ratio = 1.0
    shorter = max(32, 32 * math.ceil(side * min(ratio, 1 / ratio) / 32 - 1e-6))
    return (side, shorter) if ratio > 1 else (shorter, side)


def _choose_masks(facts: _Facts, canvas: tuple[int, int], ceilings: dict[int, float]) -> Iterator[Choice]:
    reached = ceilings.get(4, 1.0)
    fine = reached < STRIDE_4_AP
    text = f"masks of stride 4 can reach an AP of {reached:.2f} on this canvas, "
    yield Choice("mask_stride", 2 if fine else 4, text + (f"below {STRIDE_4_AP:g}." if fine else "which is enough."))
    if facts.from_scratch or fine:
        text = "its map at stride 2 and its convolutions help small objects: AP 0.117 without and 0.343 with it"
        yield Choice("neck", "adapter", f"{text} on nuclei (docs/log.md, random weights).")
    fits = min(canvas) * facts.sizes.fits if facts.factor is None else facts.factor
    share = float(np.median(facts.sizes.areas * fits**2)) / (canvas[0] * canvas[1])
    small = share < 1e-3
    if facts.from_scratch or small:
        text = (
            f"the median object covers {100 * share:.2g} % of the canvas, {POINTS * share:.0f} of {POINTS:,} random "
            "points; with points AP stayed at 0.000 where seeds and pixels reached 0.117 in a minute and a half"
        )
        yield Choice("matching", "pixels", f"{text} (nuclei, docs/log.md).")
        yield Choice("mask_loss", "pixels", "as matching; on points it is as good per minute (docs/log.md).")
    if facts.from_scratch or facts.name == FEW:
        text = (
            f"{facts.images:,} training images: learned queries reached AP 0.005 on 156 images in ten minutes, seeds "
            "0.51 (docs/log.md, random weights; not measured with DINOv3's)."
        )
        yield Choice("query_init", "seeds", text)


def _choose_scales(facts: _Facts, canvas: tuple[int, int]) -> Iterator[Choice]:
    if facts.from_scratch:
        text = "scale jitter needs more images than a short run processes (docs/log.md)."
        yield Choice("scale_min", 1.0, text)
        yield Choice("scale_max", 1.0, "as scale_min.")
        return
    sides = measure_objects(facts.data, canvas, _LOOKED_AT_IMAGES, facts.factor).sides
    every, most = keeping_scale(sides), keeping_scale(sides, 0.99)
    kept, share = (every, "every object") if every <= 0.5 else (min(most, 1.0), "99 % of the objects")
    text = f"0.1 in the published recipe; {kept:g} is the smallest scale at which {share} covers a pixel of the canvas."
    yield Choice("scale_min", max(0.1, kept), text)
    yield Choice("scale_max", 2.0, "the published recipe's (large-scale jitter, arXiv:2012.07177).")


def _choose_queries(facts: _Facts, canvas: tuple[int, int]) -> Iterator[Choice]:
    shown = int(crop_counts(facts.data.images, canvas, facts.factor).max())
    what = "an image" if facts.factor is None else "a crop"
    text = f"{what} has up to {count_of(shown, 'instance')}; a quarter more, in steps of 25, at least 50."
    yield Choice("num_queries", queries_for(shown), text)
    if facts.most > 100:
        text = f"images have up to {facts.most} instances, and COCO's 100 would count the others as missed."
        yield Choice("max_detections", queries_for(facts.most), text)


def _choose_schedule(facts: _Facts, canvas: tuple[int, int], chosen: dict[str, object]) -> Iterator[Choice]:
    """Batch by memory, epochs by the number of images, warm-up and evaluations by the number of steps."""
    if facts.from_scratch:
        batch, step_images, least, seen, warm_up = 4, 4, 20, SEEN_ON_CPU, 30
        yield Choice("per_device_train_batch_size", batch, "with this batch the recipe was measured (docs/log.md).")
    elif facts.memory is None:
        batch, step_images, least, seen, warm_up = 2, CPU_STEP_IMAGES, 50, SEEN_ON_GPU, 100
        yield Choice("per_device_train_batch_size", batch, "no GPU here: little memory.")
        text = f"{CPU_STEP_IMAGES} images per optimiser step; {STEP_IMAGES}, as published, take minutes on a CPU."
        yield Choice("gradient_accumulation_steps", CPU_STEP_IMAGES // batch, text)
    else:
        step_images, least, seen, warm_up = STEP_IMAGES, 50, SEEN_ON_GPU, 100
        each, base = FROZEN_MEMORY if chosen["freeze_backbone"] else TRAINED_MEMORY
        each *= canvas[0] * canvas[1] / 1024**2 * (FINE_MASKS if chosen["mask_stride"] == 2 else 1.0)
        free = facts.memory - CONTEXT_MEMORY - base
        batch = next((size for size in (16, 8, 4, 2) if size * each <= free), 1)
        text = (
            f"{each:.2g} GB an image on this canvas and {base + CONTEXT_MEMORY:.1f} GB beside it, computed from "
            f"docs/finetuning.md, within {facts.memory:.0f} GB; images with many objects need more."
        )
        if each > free:
            text = (
                f"even one image needs {each:.2g} GB, {max(free, 0):.2g} are free: set gradient_checkpointing to true."
            )
        yield Choice("per_device_train_batch_size", batch, text)
        text = f"{STEP_IMAGES} images per optimiser step, as published."
        yield Choice("gradient_accumulation_steps", STEP_IMAGES // batch, text)
    epochs = max(least, math.ceil(seen / facts.images))
    steps = math.ceil(epochs * facts.images / step_images)
    text = f"{facts.images:,} images {epochs} times, at least {seen:,} in all (docs/log.md)."
    if not facts.from_scratch:
        text += " The published recipe has 50."
    else:
        minutes = epochs * facts.images * canvas[0] * canvas[1] / 256**2 / 330
        text += f" About {_duration(minutes)} on two CPU cores, by 3,300 images of 256 x 256 in ten minutes."
    if chosen.get("max_train_steps") is None:
        yield Choice("num_train_epochs", chosen.get("num_train_epochs", epochs), text)
    if isinstance(limit := chosen.get("max_train_steps"), int):
        steps = limit
    text = f"{warm_up}, at most a tenth of the {steps:,} steps."
    yield Choice("num_warmup_steps", min(warm_up, steps // 10), text)
    yield Choice("checkpointing_steps", max(steps // 10, 1), "ten evaluations in the run.")


def _choose_workers(base: Mapping[str, object]) -> Iterator[Choice]:
    """Fewer processes that read images where the machine has fewer cores: more of them only wait for each other."""
    workers = base.get("dataloader_num_workers")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(workers, int) and workers > cores:
        yield Choice("dataloader_num_workers", cores, f"{workers} in the recipe; {count_of(cores, 'CPU core')} here.")


def _duration(minutes: float) -> str:
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.0f} hours"


def _paths_of(config: TrainConfig) -> dict[str, object]:
    """Paths of the data, how its images are read, and a folder for the run."""
    names = ("dataset_name", *SPLIT_OPTIONS)
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    paths: dict[str, object] = {name: str(Path(value).resolve()) for name, value in given.items()}
    paths["valid_split"] = config.valid_split
    defaults = {name: TrainConfig.model_fields[name].default for name in READING}
    paths |= {name: getattr(config, name) for name in READING if getattr(config, name) != defaults[name]}
    first = str(paths.get("dataset_name") or paths["train_annotations"])
    return paths | {"output_dir": f"runs/{Path(first).stem or 'data'}"}
