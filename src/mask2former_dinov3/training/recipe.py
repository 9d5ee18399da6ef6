"""Suggest a recipe from what a data set holds, every option with its reason as a sentence.

Reasons are of three kinds: measured on this data; measured earlier by this project (docs/log.md, docs/finetuning.md);
taken from the published recipe. Where none of them is known the option is left at its default.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..atomic_files import write_text
from ..config.presets import HUB_BACKBONES, SPLIT_OPTIONS
from ..config.train_config import TrainConfig, load_config
from ..data.achievable_ap import mask_ceilings
from ..data.check import Report
from ..data.coco import CocoData
from ..data.faults import count_of
from ..data.object_sizes import ObjectSizes, keeping_scale, measure_objects
from ..errors import DatasetError, mismatch
from .build_model import STRIDE_4_AP, resolve_auto

GPU_SIDES = (256, 384, 512, 640, 768, 1024)  # the longer side of the canvas; memory was measured at 1024
CPU_SIDES = (256, 320, 384, 512)
POINTS = 12_544  # at which published Mask2Former compares masks
STEP_IMAGES = 16  # per optimiser step in the published recipe
READING = ("value_range", "page", "channels", "extra_images")  # options that say how images are read
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
    """A suggested recipe. fixed: options that the data does not decide, as in the recipe it starts from."""

    choices: tuple[Choice, ...]
    fixed: dict[str, object]

    @property
    def options(self) -> dict[str, object]:
        """The options as `train --config` reads them, with the reasons in `description`."""
        reasons = " ".join(f"{one.option}: {one.reason}" for one in self.choices)
        return {"description": f"Suggested by check-data. {reasons}", **self.fixed} | {
            one.option: one.value for one in self.choices
        }

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
    """What the choices follow from. memory: GB of the GPU, None for a CPU; most: instances in one image."""

    data: CocoData
    memory: float | None
    sizes: ObjectSizes  # at a canvas of one pixel: `fits` are 1 / longer side
    images: int
    most: int


def suggest_recipe(report: Report, config: TrainConfig, gpu_memory: float | None = None) -> Recipe:
    """A recipe for the training split of a checked data set.

    config: names the data. gpu_memory: GB of the GPU to plan for; None: of this machine's, or for a CPU without one.
    Raises DatasetError when there is nothing to train on.
    """
    data = report.data.get("train")
    sizes = None if data is None else measure_objects(data, (1, 1), _LOOKED_AT_IMAGES)
    if data is None or sizes is None or not len(sizes.areas):
        raise DatasetError(f"suggest: {mismatch('a train split with objects to measure', 'none')}")
    if gpu_memory is None and torch.cuda.is_available():
        gpu_memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    most = int(data.images.instance_counts().max())
    facts = _Facts(data, gpu_memory, sizes, len(data.images), most)
    choices = [*_choose_backbone(facts)]
    canvas, ceilings, reason = _choose_canvas(facts)
    choices += [Choice("image_height", canvas[0], reason), Choice("image_width", canvas[1], "as image_height.")]
    choices += _choose_masks(facts, canvas, ceilings)
    choices += _choose_scales(facts, canvas)
    choices += _choose_queries(facts)
    choices += _choose_schedule(facts, canvas, {one.option: one.value for one in choices})
    return Recipe(tuple(choices), _fixed_options(config, gpu_memory is None))


def _choose_backbone(facts: _Facts) -> Iterator[Choice]:
    if facts.memory is None:
        text = (
            "no GPU here and no --gpu-memory: a small network with random weights, which two CPU cores train in "
            "minutes (docs/log.md); with a GPU, suggest again there."
        )
        yield Choice("backbone", "tiny", text)
        yield Choice("freeze_backbone", False, "random weights have to be trained.")
        return
    text = (
        f"DINOv3 ViT-S+ with {facts.memory:.0f} GB; its memory was measured (docs/finetuning.md). The weights are "
        "gated: accept their licence, or set backbone to a local folder. ViT-L needs about twice the memory."
    )
    yield Choice("backbone", HUB_BACKBONES["smallplus"], text)
    if facts.images < MANY_IMAGES:
        text = f"{facts.images:,} training images are fewer than tens of thousands: frozen (docs/finetuning.md)."
        yield Choice("freeze_backbone", True, text)
        return
    text = f"{facts.images:,} training images: all of it, with layer-wise decay (docs/finetuning.md)."
    yield Choice("freeze_backbone", False, text)
    yield Choice("layer_decay", 0.8, "ViTDet's and EoMT's value (docs/finetuning.md).")
    yield Choice("backbone_lr_multiplier", 1.0, "with layer_decay the last block has the head's rate.")


def _choose_canvas(facts: _Facts) -> tuple[tuple[int, int], dict[int, float], str]:
    """The smallest canvas on which masks can reach an AP of 0.8, not below the images' own size where it is allowed."""
    shapes = np.array([(record.height, record.width) for record in facts.data.images], np.float64)
    longer = float(np.median(shapes.max(1)))
    sides = CPU_SIDES if facts.memory is None else GPU_SIDES
    strides = (2, 4)
    start = next((side for side in sides if side >= min(longer, sides[-1])), sides[-1])
    if facts.memory is None:
        start = sides[0]
    best: tuple[tuple[int, int], dict[int, float]] | None = None
    for side in (one for one in sides if one >= start):
        canvas = _canvas_of(shapes, side)
        best = canvas, mask_ceilings(facts.data, canvas, strides)
        if best[1].get(2 if facts.memory is None else 4, 1.0) >= STRIDE_4_AP:
            break
    assert best is not None  # `sides` is not empty
    canvas, ceilings = best
    reached = ", ".join(f"{value:.2f} at stride {stride}" for stride, value in ceilings.items())
    enough = max(ceilings.values(), default=1.0) >= STRIDE_4_AP
    text = (
        f"the images' longer side is {longer:.0f} pixels (median); a canvas of {canvas[0]} x {canvas[1]} has their "
        f"shape, and masks can reach an AP of {reached} on it (measured on this data), "
    )
    text += f"where {STRIDE_4_AP:g} is asked for" if enough else f"less than {STRIDE_4_AP:g}: cut the images into tiles"
    text += "." if facts.memory is None else "; larger canvases than 1024 have not been measured."
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
    if facts.memory is None or fine:
        text = "its map at stride 2 and its convolutions help small objects: AP 0.117 without and 0.343 with it"
        yield Choice("neck", "adapter", f"{text} on nuclei (docs/log.md, random weights).")
    share = float(np.median(facts.sizes.areas * (min(canvas) * facts.sizes.fits) ** 2)) / (canvas[0] * canvas[1])
    small = share < 1e-3
    if facts.memory is None or small:
        text = (
            f"the median object covers {100 * share:.2g} % of the canvas, {POINTS * share:.0f} of {POINTS:,} random "
            "points; with points AP stayed at 0.000 where seeds and pixels reached 0.117 in a minute and a half"
        )
        yield Choice("matching", "pixels", f"{text} (nuclei, docs/log.md).")
        yield Choice("mask_loss", "pixels", "as matching; on points it is as good per minute (docs/log.md).")
    if facts.memory is None or facts.images < FEW_IMAGES:
        text = (
            f"{facts.images:,} training images: learned queries reached AP 0.005 on 156 images in ten minutes, seeds "
            "0.51 (docs/log.md, random weights; not measured with DINOv3's)."
        )
        yield Choice("query_init", "seeds", text)


def _choose_scales(facts: _Facts, canvas: tuple[int, int]) -> Iterator[Choice]:
    if facts.memory is None:
        text = "scale jitter needs more images than a short run processes (docs/log.md)."
        yield Choice("scale_min", 1.0, text)
        yield Choice("scale_max", 1.0, "as scale_min.")
        return
    sides = measure_objects(facts.data, canvas, _LOOKED_AT_IMAGES).sides
    every, most = keeping_scale(sides), keeping_scale(sides, 0.99)
    kept, share = (every, "every object") if every <= 0.5 else (min(most, 1.0), "99 % of the objects")
    text = f"0.1 in the published recipe; {kept:g} is the smallest scale at which {share} covers a pixel of the canvas."
    yield Choice("scale_min", max(0.1, kept), text)
    yield Choice("scale_max", 2.0, "the published recipe's (large-scale jitter, arXiv:2012.07177).")


def _choose_queries(facts: _Facts) -> Iterator[Choice]:
    config = TrainConfig(output_dir="unused", dataset_name="unused", num_queries="auto")
    number = resolve_auto(config, facts.data).num_queries
    text = f"an image has up to {count_of(facts.most, 'instance')}; a quarter more, in steps of 25, at least 50."
    yield Choice("num_queries", number, text)
    if facts.most > 100:
        text = f"images have up to {facts.most} instances, and COCO's 100 would count the others as missed."
        yield Choice("max_detections", number, text)


def _choose_schedule(facts: _Facts, canvas: tuple[int, int], chosen: dict[str, object]) -> Iterator[Choice]:
    """Batch by memory, epochs by the number of images, warm-up and evaluations by the number of steps."""
    if facts.memory is None:
        batch, step_images, least, seen, warm_up = 4, 4, 20, SEEN_ON_CPU, 30
        yield Choice("per_device_train_batch_size", batch, "that of sample/from_scratch_args.json, which was measured.")
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
    source = "sample/from_scratch_args.json has 30" if facts.memory is None else "the published recipe has 50"
    text = f"{facts.images:,} images {epochs} times, at least {seen:,} in all (docs/log.md); {source}."
    if facts.memory is None:
        minutes = epochs * facts.images * canvas[0] * canvas[1] / 256**2 / 330
        text += f" About {_duration(minutes)} on two CPU cores, by 3,300 images of 256 x 256 in ten minutes."
    yield Choice("num_train_epochs", epochs, text)
    source = "sample/from_scratch_args.json" if facts.memory is None else "the shipped recipes"
    text = f"{warm_up} as in {source}, at most a tenth of the {steps:,} steps."
    yield Choice("num_warmup_steps", min(warm_up, steps // 10), text)
    yield Choice("checkpointing_steps", max(steps // 10, 1), "ten evaluations in the run.")


def _duration(minutes: float) -> str:
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.0f} hours"


def _fixed_options(config: TrainConfig, on_cpu: bool) -> dict[str, object]:
    """Paths of the data, how its images are read, and the options of the recipe that this one starts from."""
    names = ("dataset_name", *SPLIT_OPTIONS)
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    paths: dict[str, object] = {name: str(Path(value).resolve()) for name, value in given.items()}
    paths["valid_split"] = config.valid_split
    defaults = {name: TrainConfig.model_fields[name].default for name in READING}
    paths |= {name: getattr(config, name) for name in READING if getattr(config, name) != defaults[name]}
    first = str(paths.get("dataset_name") or paths["train_annotations"])
    paths["output_dir"] = f"runs/{Path(first).stem or 'data'}"
    if on_cpu:  # sample/from_scratch_args.json
        return paths | {
            "dataloader_num_workers": 0,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "mask_feature_size": 64,
            "learning_rate": 1e-3,
            "backbone_lr_multiplier": 1.0,
            "max_grad_norm": 1.0,
            "ema_decay": 0.99,
        }
    return paths | {"dataloader_num_workers": 4, "mixed_precision": "bf16", "learning_rate": 1e-4}
