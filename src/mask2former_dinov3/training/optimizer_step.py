"""One optimiser step: forward and backward passes over its batches, the gradient's norm, and the update."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..data.dataset import Batch
from ..errors import UserError, mark_shared
from .checkpoint import list_checkpoints
from .distributed import sum_over_processes
from .run import Run

LOGGED = ("loss", "loss_cross_entropy", "loss_mask", "loss_dice")
HALF_DONE = "the weights were being changed"  # a note of the exception: the state is that of no step


def logged_losses(run: Run) -> tuple[str, ...]:
    """Names of the losses in a line of metrics.jsonl: the whole loss first, then its parts."""
    return (*LOGGED, "loss_seed") if run.model.config.query_init == "seeds" else LOGGED


def update(run: Run, wrapped: nn.Module, window: list[Batch], normalizers: Tensor) -> Tensor:
    """Do one optimiser step; returns the logged losses over all processes, then the gradient's norm, float64.

    Raises UserError with the image ids, on all processes and before any weight changes, when a loss or the gradient is
    not finite. (In fp16 an infinite gradient is normal now and then: the gradient scaler skips that step.)
    """
    accelerator = run.accelerator
    local = torch.zeros(len(logged_losses(run)), device=accelerator.device)
    suspects: list[int] = []
    for number, batch in enumerate(window, start=1):
        with nullcontext() if number == len(window) else accelerator.no_sync(wrapped):
            parts = backward_batch(run, wrapped, batch, normalizers)
        if not torch.isfinite(parts).all():
            suspects += batch["image_ids"]
        local += parts
    summed = sum_over_processes(accelerator, local)
    if not torch.isfinite(summed).all():
        raise mark_shared(describe_not_finite(run, "loss", suspects))
    norm = accelerator.clip_grad_norm_(wrapped.parameters(), run.config.max_grad_norm or float("inf"))
    if accelerator.scaler is None and not torch.isfinite(norm):
        images = [image for batch in window for image in batch["image_ids"]]
        raise mark_shared(describe_not_finite(run, "gradient", images))
    try:
        run.optimizer.step()
        if not accelerator.optimizer_step_was_skipped:
            run.step_schedule()
            if run.averaged:
                run.averaged.update(run.state.step + 1)
    except BaseException as error:
        error.add_note(HALF_DONE)
        raise
    run.optimizer.zero_grad(set_to_none=True)
    return torch.cat([summed, torch.as_tensor(norm).double().cpu().view(1)])


def backward_batch(run: Run, model: nn.Module, batch: Batch, normalizers: Tensor) -> Tensor:
    """The forward and backward pass of one batch; returns the losses, named by `logged_losses`."""
    accelerator, device = run.accelerator, run.accelerator.device
    output = model(  # Mask2FormerDinov3Output
        pixel_values=batch["pixel_values"].to(device, non_blocking=True),
        pixel_mask=batch["pixel_mask"].to(device, non_blocking=True),
        # The bytes are 0 and 1; as bool the model need not compare them with 0, which would be a copy.
        mask_labels=[masks.to(device, non_blocking=True).view(torch.bool) for masks in batch["mask_labels"]],
        class_labels=[classes.to(device, non_blocking=True) for classes in batch["class_labels"]],
        normalizers=normalizers,
    )
    # With the normalisers, losses add up over processes; but DDP averages gradients, hence the factor.
    accelerator.backward(output.loss * accelerator.num_processes)
    return torch.stack([output.loss, *(output.loss_dict[name] for name in logged_losses(run)[1:])]).detach()


def describe_not_finite(run: Run, what: str, image_ids: list[int]) -> UserError:
    """The error for an optimiser step that must not be done. image_ids: those of this process; all are reported."""
    images = gather_object(image_ids)
    resume = "; resume with --resume-from-checkpoint latest" if list_checkpoints(run.output_dir) else ""
    return UserError(
        f"step {run.state.step + 1}: expected a finite {what}, got one that is not, on images {images}; check these "
        f"images with check-data, lower --learning-rate, or use --mixed-precision bf16 instead of fp16{resume}"
    )
