"""The training run, top to bottom: data, model, loop, evaluation, saving."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers.utils.logging import disable_progress_bar

from ..atomic_files import check_writable, write_text
from ..config.train_config import TrainConfig
from ..data.check import check_data
from ..data.coco import CocoData
from ..data.dataset import CocoInstanceDataset, collate
from ..data.layout import find_splits
from ..data.sampler import TrainingOrder
from ..data.transforms import Augmentation
from ..errors import CheckpointError, DatasetError, UserError
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..model import loss_normalizers
from ..model_folder.hub import prepare_repository, push_finished
from .build_model import build_model, build_processor, fitted_to
from .checkpoint import RunState, best_folder, checkpoints
from .distributed import together, torn_down, total
from .ema import AveragedWeights
from .metrics_log import RunLog
from .optimizer import build_optimizer, build_scheduler
from .run import Run
from .signals import StopRequest, ignore_signals

logger = logging.getLogger(__name__)
LOGGED = ("loss", "loss_cross_entropy", "loss_mask", "loss_dice")


def train(config: TrainConfig) -> dict[str, Any]:
    """Train as `config` says; returns the metrics of the last evaluation (empty without validation data).

    Leaves the run folder of the contract in `config.output_dir`, with `push_to_hub` also its best model on the hub.
    Raises UserError (a ValueError) for what the user can mend, KeyboardInterrupt after a stop that was asked for, with
    the work saved.
    """
    disable_progress_bar()  # of transformers, for every file it writes
    accelerator = start_accelerator(config)
    with torn_down(accelerator):
        data = load_data(config)
        config = fitted_to(config, data["train"])
        together(accelerator, lambda: prepare_folder(config), main_only=True)
        repo = together(accelerator, lambda: hub_repository(config), main_only=True)
        run, wrapped = start_run(config, accelerator, data)
        together(accelerator, lambda: write_config(config), main_only=True)
        if config.with_tracking:
            flat = {k: v for k, v in config.model_dump().items() if isinstance(v, int | float | str | bool)}
            accelerator.init_trackers("tracking", config=flat)
        loop(run, wrapped)
    if repo is not None:  # on the main process; the others need not wait for the upload
        folder, private = best_folder(Path(config.output_dir)), config.hub_private_repo
        logger.info("uploading %s to %s", folder, repo)
        logger.info("uploaded: %s", push_finished(folder, repo, private=private, token=config.hub_token))
    return dict(run.state.last_metrics)


def loop(run: Run, wrapped: Any) -> None:
    """Optimiser steps from the run's place to its end, with logging, evaluation and saving in between."""
    config, state, last_step = run.config, run.state, run.order.last_step
    log = RunLog(run.accelerator, run.output_dir, first_step=state.step, num_steps=last_step)
    with log, StopRequest() as stop, training_batches(run) as batches:
        wrapped.train()
        names = logged_losses(run)
        sums, since = torch.zeros(len(names) + 1, dtype=torch.float64), state.step
        while state.step < last_step:
            window, normalizers, stopping = next_window(run, batches, stop)
            if stopping:
                path = run.save()
                raise KeyboardInterrupt(f"stopped at step {state.step}; go on with --resume_from_checkpoint {path}")
            sums += update(run, wrapped, window, normalizers)
            state.step += 1
            log.step_done(run.order.step_size)
            finished = state.step == last_step
            if finished or state.step % config.logging_steps == 0:
                means = (sums / (state.step - since)).tolist()
                values = dict(zip((*names, "grad_norm"), means, strict=True))
                log.training(state.step, run.epoch, {**values, "lr": float(run.scheduler.get_last_lr()[0])})
                sums, since = torch.zeros_like(sums), state.step
            if finished or run.is_checkpoint_step():
                run.evaluate_and_save(log)
        run.finish(log)


def start_accelerator(config: TrainConfig) -> Accelerator:
    """Devices, processes and precision. Raises UserError when the precision or the tracker cannot be had here.

    accelerate itself would go on in float32, or without a tracker.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no supported trackers")  # an error below
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=config.report_to if config.with_tracking else None,
            project_dir=config.output_dir,
        )
    fault = None
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        fault = "mixed_precision: fp16 needs a GPU, this run is on a CPU; use bf16 or no"
    elif config.with_tracking and not accelerator.log_with:
        fault = (
            f"report_to: {config.report_to} is not installed; pip install 'mask2former-dinov3[trackers]' brings wandb "
            f"and trackio, tensorboard is there already, --with_tracking false does without"
        )
    if fault is not None:
        AcceleratorState._reset_state(reset_partial_state=True)
        raise UserError(fault)
    if accelerator.mixed_precision == "bf16" and accelerator.device.type == "cpu" and not cpu_has_bf16():
        logger.warning(
            "mixed_precision: bf16 on a CPU without instructions for it is many times slower than float32; "
            "--mixed_precision no is the faster choice here"
        )
    return accelerator


def cpu_has_bf16() -> bool:
    """Without such instructions torch computes in bf16 on one thread: minutes for what takes seconds in float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def load_data(config: TrainConfig) -> dict[str, CocoData]:
    """The splits by name. Raises DatasetError with every fault that would stop or spoil training."""
    splits, notes = find_splits(
        Path(config.dataset_name) if config.dataset_name else None,
        train_annotations=config.train_annotations,
        train_images=config.train_images,
        valid_annotations=config.valid_annotations,
        valid_images=config.valid_images,
        test_annotations=config.test_annotations,
        test_images=config.test_images,
        valid_split=config.valid_split,
    )
    if "train" not in splits:
        raise DatasetError(f"no training data in {config.dataset_name}: found only {', '.join(splits)}")
    num_queries = None if config.num_queries == "auto" else config.num_queries
    report = check_data(splits, notes, num_queries=num_queries, full=False)
    report.raise_errors()
    logger.info("%s", report.text(limit=5))
    return report.data


def prepare_folder(config: TrainConfig) -> None:
    """The run folder. Refuses one that holds another run's work."""
    output_dir = Path(config.output_dir)
    check_writable(output_dir)
    if config.resume_from_checkpoint is None and (checkpoints(output_dir) or (output_dir / "last").exists()):
        raise CheckpointError(
            f"output_dir {output_dir} holds an earlier run; go on with it by --resume_from_checkpoint latest, "
            f"or choose another output_dir"
        )


def hub_repository(config: TrainConfig) -> str | None:
    """USER/NAME of the repository for `push_to_hub`, made now rather than found to be refused after hours."""
    if not config.push_to_hub:
        return None
    name = config.hub_model_id or Path(config.output_dir).resolve().name
    return prepare_repository(name, private=config.hub_private_repo, token=config.hub_token)


def write_config(config: TrainConfig) -> None:
    """The resolved configuration, once nothing can refuse it any more."""
    text = json.dumps(config.model_dump(mode="json"), indent=2) + "\n"
    write_text(Path(config.output_dir) / "train_config.json", text)


def start_run(config: TrainConfig, accelerator: Accelerator, data: dict[str, CocoData]) -> tuple[Run, Any]:
    """Everything the loop works with, at step 0 or where the checkpoint left off, and the model as it is trained."""
    torch.manual_seed(config.seed)  # every process starts from the same weights
    model = build_model(config, data["train"])
    processor = build_processor(config, model)
    order = TrainingOrder(
        len(data["train"].images),
        batch_size=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
        seed=config.seed,
        last_step=0,
    )
    order.last_step = config.max_train_steps or -(-config.num_train_epochs * order.num_images // order.step_size)
    optimizer = build_optimizer(model, config)
    scheduler = build_scheduler(optimizer, config, order.last_step)
    torch.manual_seed(config.seed + 1 + accelerator.process_index)  # from here on: the points of the losses
    state = RunState(step_size=order.step_size, num_images=order.num_images)
    run = Run(config, accelerator, data, model, processor, optimizer, scheduler, order, state)
    optimisation = run.load(config.resume_from_checkpoint) if config.resume_from_checkpoint else None
    if config.ema_decay:
        run.averaged = AveragedWeights(model, config.ema_decay)
        run.averaged.model.to(accelerator.device)
    wrapped, run.optimizer = accelerator.prepare(model, optimizer)
    if optimisation is not None:
        run.load_optimisation(optimisation)
    return run, wrapped


def training_dataset(
    config: TrainConfig, processor: Mask2FormerDinov3ImageProcessor, data: CocoData
) -> CocoInstanceDataset:
    """The images on the canvas, augmented as `config` says."""
    return CocoInstanceDataset(
        data,
        image_height=config.image_height,
        image_width=config.image_width,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
        augmentation=Augmentation(
            scale_min=config.scale_min,
            scale_max=config.scale_max,
            flip=config.flip,
            color_jitter=config.color_jitter,
            copy_paste=config.copy_paste,
        ),
        seed=config.seed,
    )


@contextmanager
def training_batches(run: Run) -> Iterator[Iterator[dict[str, Any]]]:
    """This process's batches from the run's step to its end; its workers end with the block, however that ends.

    An error's traceback would keep their iterator alive until Python ends, which then waits for them for ever: they
    ignore the signal by which it ends them.
    """
    config = run.config
    run.order.first_step = run.state.step
    loader = DataLoader(
        training_dataset(config, run.processor, run.data["train"]),
        batch_sampler=run.order,
        collate_fn=collate,
        worker_init_fn=ignore_signals,
        num_workers=config.dataloader_num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own, so that starting workers does not move the random points
    )
    batches = iter(loader)
    try:
        yield batches
    finally:
        if config.dataloader_num_workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]  # no public name for it


def next_window(
    run: Run, batches: Iterator[dict[str, Any]], stop: StopRequest
) -> tuple[list[dict[str, Any]], torch.Tensor, bool]:
    """The batches of one optimiser step, what its losses are divided by over all processes, and whether to stop."""
    if bool(total(run.accelerator, torch.tensor([float(stop.requested)]))[0]):
        return [], torch.zeros(2), True

    def read() -> list[dict[str, Any]]:
        try:
            return [next(batches) for _ in range(run.config.gradient_accumulation_steps)]
        except DatasetError as error:  # a worker's error arrives with its traceback as text
            raise DatasetError(str(error).rpartition("DatasetError: ")[2].strip()) from None

    window = together(run.accelerator, read)
    assert window is not None
    model_config = run.model.config
    labels = [classes for batch in window for classes in batch["class_labels"]]
    local = loss_normalizers(labels, model_config.num_queries, model_config.no_object_weight)
    return window, total(run.accelerator, local).float(), False


def logged_losses(run: Run) -> tuple[str, ...]:
    """The whole loss first, then those of its parts that a line of metrics.jsonl has."""
    return (*LOGGED, "loss_seed") if run.model.config.query_init == "seeds" else LOGGED


def update(run: Run, wrapped: Any, window: list[dict[str, Any]], normalizers: torch.Tensor) -> torch.Tensor:
    """One optimiser step. Returns the logged losses over all processes, then the gradient's norm, float64.

    Raises UserError with the image ids when a loss or the gradient is not finite, on all processes and before anything
    is changed. (In fp16 an infinite gradient is usual now and then: the scaler passes over that step.)
    """
    accelerator, device = run.accelerator, run.accelerator.device
    names = logged_losses(run)
    local = torch.zeros(len(names), device=device)
    suspects: list[Any] = []
    for number, batch in enumerate(window, start=1):
        with nullcontext() if number == len(window) else accelerator.no_sync(wrapped):
            output = wrapped(
                pixel_values=batch["pixel_values"].to(device, non_blocking=True),
                pixel_mask=batch["pixel_mask"].to(device, non_blocking=True),
                mask_labels=[masks.to(device, non_blocking=True) for masks in batch["mask_labels"]],
                class_labels=[classes.to(device, non_blocking=True) for classes in batch["class_labels"]],
                normalizers=normalizers,
            )
            # The normalisers make losses add up over processes; DDP averages gradients, hence the factor.
            accelerator.backward(output.loss * accelerator.num_processes)
        parts = torch.stack([output.loss, *(output.loss_dict[name] for name in names[1:])]).detach()
        if not torch.isfinite(parts).all():
            suspects += batch["image_ids"]
        local += parts
    summed = total(accelerator, local)
    if not torch.isfinite(summed).all():
        raise not_finite(run, "loss", suspects)
    norm = accelerator.clip_grad_norm_(wrapped.parameters(), run.config.max_grad_norm or float("inf"))
    if accelerator.scaler is None and not torch.isfinite(norm):
        raise not_finite(run, "gradient", [image for batch in window for image in batch["image_ids"]])
    run.optimizer.step()
    if not accelerator.optimizer_step_was_skipped:
        run.scheduler.step()
        if run.averaged:
            run.averaged.update(run.state.step + 1)
    run.optimizer.zero_grad(set_to_none=True)
    return torch.cat([summed, torch.as_tensor(norm).double().cpu().view(1)])


def not_finite(run: Run, what: str, image_ids: list[Any]) -> UserError:
    """The error for a step that must not be taken; image_ids: this process's, joined with those of the others."""
    images = gather_object(image_ids)
    return UserError(
        f"step {run.state.step + 1}: the {what} is not finite on images {images}; nothing was changed. "
        f"Look at these images with check-data, lower learning_rate, or use mixed_precision bf16 in place of fp16"
        + (". Go on with --resume_from_checkpoint latest" if checkpoints(run.output_dir) else "")
    )
