"""When memory is full in training: which options need less, in the order of their worth, and how much less here."""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ..allocator import give_back_freed_memory
from ..canvas import padded_size
from ..errors import UserError, is_shared, mark_shared, memory_reason
from ..inference.compiled_predict import without_compiling
from ..inference.predictor import cpu_has_bf16
from .checkpoint import list_checkpoints
from .device_memory import is_full_memory
from .resume import FIXED
from .run import Run

logger = logging.getLogger(__name__)
_SIDE = 256  # longest side of the canvas on which storage is measured: it grows with the number of pixels
_MOST_INSTANCES = 50
_TRAINED = 12  # bytes of a trained weight besides itself: its gradient and AdamW's two averages


class Saving(NamedTuple):
    """Options that need less memory. names: their keys. gigabytes: estimated, None where that was not possible."""

    flags: str
    names: tuple[str, ...]
    gigabytes: float | None
    remark: str = ""


class _Stored(NamedTuple):
    """Bytes that autograd stores for an image on the canvas: in all, in the backbone, and in all with other options."""

    whole: float
    backbone: float
    checkpointed: float
    bf16: float


@contextmanager
def explain_full_memory(run: Run) -> Iterator[None]:
    """Turn an error for full memory, of a GPU or of the machine, into a UserError that names what needs less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_full_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the step that failed
        run.optimizer.zero_grad(set_to_none=True)
        explained = UserError(describe_full_memory(run, memory_reason(error)))
        raise (mark_shared(explained) if is_shared(error) else explained) from error


def describe_full_memory(run: Run, reason: str) -> str:
    """The message: what failed, then one line for each option that is not set yet."""
    config, size = run.config, run.order.batch_size
    lines = [f"out of memory on the device: {reason}; what needs less, the best first"]
    lines[0] += f" (estimated here, for batches of {size} on {config.image_height}x{config.image_width}):"
    is_begun = bool(list_checkpoints(run.output_dir))
    for one in list_savings(run):
        amount = "" if one.gigabytes is None else f"about {one.gigabytes:.2g} GB less"
        new = "in a new run" if is_begun and set(one.names) & set(FIXED) else ""
        notes = ", ".join(filter(None, (amount, one.remark, new)))
        lines.append(f"  {one.flags}" + (f": {notes}" if notes else ""))
    if len(lines) == 1:
        return f"out of memory on the device: {reason}; every option that needs less is set: free memory on the device"
    return "\n".join(lines)


def list_savings(run: Run) -> list[Saving]:
    """The options that are not set yet: frozen backbone, checkpointing, bf16, batch, canvas."""
    config, model, size = run.config, run.model, run.order.batch_size
    stored = _measure(run)

    def gigabytes(part: float | None, more: float = 0.0) -> float | None:
        return None if part is None else (size * part + more) / 1e9

    found: list[Saving] = []
    trained = sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)
    is_random = model.config.backbone_source is None and config.head is None
    if trained and not config.lora_rank and not is_random:  # frozen random weights would stay random
        part = stored and stored.backbone
        found.append(Saving("--freeze-backbone true", ("freeze_backbone",), gigabytes(part, trained * _TRAINED)))
    if not config.gradient_checkpointing:
        part = stored and stored.whole - stored.checkpointed
        found.append(
            Saving("--gradient-checkpointing true", ("gradient_checkpointing",), gigabytes(part), "slower, same result")
        )
    knows_bf16 = cpu_has_bf16() if run.accelerator.device.type == "cpu" else torch.cuda.is_bf16_supported()
    if run.accelerator.mixed_precision == "no" and knows_bf16:
        part = stored and stored.whole - stored.bf16
        found.append(Saving("--mixed-precision bf16", ("mixed_precision",), gigabytes(part)))
    if size > 1:
        smaller = max(number for number in range(1, size) if size % number == 0)
        steps = run.order.accumulation * size // smaller
        flags = f"--per-device-train-batch-size {smaller} --gradient-accumulation-steps {steps}"
        part = stored and stored.whole * (size - smaller) / size
        names = ("per_device_train_batch_size", "gradient_accumulation_steps")
        found.append(Saving(flags, names, gigabytes(part), "same result"))
    sides = [max(64, side * 3 // 4 // 32 * 32) for side in (config.image_height, config.image_width)]
    kept = sides[0] * sides[1] / (config.image_height * config.image_width)
    if kept < 1:
        part = stored and stored.whole * (1 - kept)
        flags = f"--image-height {sides[0]} --image-width {sides[1]}"
        found.append(Saving(flags, ("image_height", "image_width"), gigabytes(part), "small objects are lost first"))
    return [one for one in found if one.gigabytes is None or one.gigabytes > 0]


def _measure(run: Run) -> _Stored | None:
    """What autograd stores for one of the fullest images, measured on a small canvas; None where that fails, too."""
    config, model = run.config, run.model
    gc.collect()
    if run.accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    give_back_freed_memory()
    height, width = padded_size(config.image_height, config.image_width)
    shrink = max(1.0, max(height, width) / _SIDE)
    small = [max(64, int(side / shrink) // 32 * 32) for side in (height, width)]
    scale = height * width / (small[0] * small[1])
    most = min(int(run.data["train"].images.instance_counts().max(initial=0)), _MOST_INSTANCES)
    model.train()
    try:
        whole, backbone = _count_stored(run, small, most)
        bf16, _ = _count_stored(run, small, most, bf16=True)
        checkpointed = whole
        if not config.gradient_checkpointing:
            model.activation_checkpointing_enable()  # the run ends here
            checkpointed, _ = _count_stored(run, small, most)
    except (RuntimeError, MemoryError) as error:
        logger.warning("what would be saved could not be measured: %s", memory_reason(error))
        return None
    return _Stored(*(number * scale for number in (whole, backbone, checkpointed, bf16)))


def _count_stored(run: Run, size: list[int], instances: int, *, bf16: bool = False) -> tuple[int, int]:
    """Bytes that autograd stores in a forward pass of one image of `size` (height, width): in all, in the backbone."""
    model, device = run.model, run.accelerator.device
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    of_backbone: dict[int, int] = {}
    is_inside = False

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            place, count = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
            kept[place] = count
            if is_inside:
                of_backbone[place] = count
        return tensor

    def enter(*_: object) -> None:
        nonlocal is_inside
        is_inside = True

    def leave(*_: object) -> None:
        nonlocal is_inside
        is_inside = False

    hooks = [model.backbone.register_forward_pre_hook(enter), model.backbone.register_forward_hook(leave)]
    masks = torch.zeros(instances, *size, dtype=torch.uint8, device=device)
    masks[:, : size[0] // 2, : size[1] // 2] = 1
    try:
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            without_compiling(model),
            torch.autocast(device.type, torch.bfloat16, enabled=True) if bf16 else run.accelerator.autocast(),
        ):
            model(
                pixel_values=torch.zeros(1, model.config.num_channels, *size, device=device),
                pixel_mask=torch.ones(1, *size, dtype=torch.bool, device=device),
                mask_labels=[masks],
                class_labels=[torch.zeros(instances, dtype=torch.int64, device=device)],
            )
    finally:
        for hook in hooks:
            hook.remove()
    return sum(kept.values()), sum(of_backbone.values())
