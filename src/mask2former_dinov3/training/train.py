"""The training run, top to bottom: data, model, loop."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.utils.logging import disable_progress_bar

from ..atomic_files import check_writable, write_text
from ..config.train_config import TrainConfig
from ..data.check import check_data
from ..data.coco import CocoData
from ..data.coco_types import Metrics
from ..data.dataset import Batch, CocoInstanceDataset, collate
from ..data.layout import Split, find_splits
from ..data.read_rules import ReadRules
from ..data.sampler import TrainingOrder
from ..data.transforms import Augmentation
from ..errors import ConfigError, DatasetError, OptionError, UserError
from ..extras import require
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..model import loss_normalizers
from ..model_folder.hub import prepare_repository, push_finished
from .apply_recipe import apply_recipe, judge_length
from .build_model import build_model, build_processor, resolve_auto
from .checkpoint import OptimizationState, RunState, best_folder, find_checkpoint, list_checkpoints
from .distributed import end_processes_at_exit, run_on_all, run_on_main, sum_over_processes
from .ema import AveragedWeights
from .metrics_log import MetricsLog
from .optimizer import build_optimizer, build_scheduler
from .resume import load_progress, restore_optimization
from .run import Run, describe_run
from .run_report import report_run
from .shared_data import share_data
from .signals import StopRequest, ignore_signals

logger = logging.getLogger(__name__)
LOGGED = ("loss", "loss_cross_entropy", "loss_mask", "loss_dice")


def train(config: TrainConfig) -> Metrics:
    """Train as `config` says; returns the metrics of the last evaluation (empty without validation data).

    Writes the run folder `config.output_dir`; with `push_to_hub` also uploads the best model to the hub.
    Raises UserError (a ValueError) for what the user can fix, and KeyboardInterrupt after a requested stop, with a
    checkpoint saved.
    """
    disable_progress_bar()  # transformers shows one for every file that it writes
    accelerator = start_accelerator(config)
    with end_processes_at_exit(accelerator):
        if config.resume_from_checkpoint is not None:  # before the data and the model, which take minutes
            find_checkpoint(config.resume_from_checkpoint, Path(config.output_dir))
        with share_data(accelerator, Path(config.output_dir), partial(load_data, config)) as data:
            config = resolve_auto(apply_recipe(config, data["train"], accelerator), data["train"])
            run_on_main(accelerator, lambda: prepare_folder(config))
            repo = run_on_main(accelerator, lambda: prepare_hub_repository(config))
            run, wrapped = start_run(config, accelerator, data)
            run_on_main(accelerator, lambda: write_config(config))
            if config.with_tracking:
                flat = {k: v for k, v in config.model_dump().items() if isinstance(v, int | float | str | bool)}
                accelerator.init_trackers("tracking", config=flat)
            loop(run, wrapped)
    if repo is not None:  # on the main process; the others need not wait for the upload
        folder, private = best_folder(run.output_dir), config.hub_private_repo
        logger.info("uploading %s to %s", folder, repo)
        logger.info("uploaded: %s", push_finished(folder, repo, private=private, token=config.hub_token))
    return run.state.last_metrics


def loop(run: Run, wrapped: nn.Module) -> None:
    """Optimiser steps from the run's current step to its last one, with logging, evaluation and saving in between.

    wrapped: `run.model` as accelerate prepared it.
    """
    config, state = run.config, run.state
    log = MetricsLog(run.accelerator, run.output_dir, first_step=state.step, num_steps=run.order.last_step)
    with log, StopRequest() as stop, read_batches(run) as batches:
        wrapped.train()
        names = logged_losses(run)
        sums, since = torch.zeros(len(names) + 1, dtype=torch.float64), state.step
        while not run.is_finished:
            if bool(sum_over_processes(run.accelerator, torch.tensor([float(stop.requested)]))[0]):
                path = run.save_checkpoint()
                reason = f"It was stopped on request at step {state.step} of {run.order.last_step}."
                run_on_main(run.accelerator, partial(report_run, run.output_dir, reason))
                raise KeyboardInterrupt(f"stopped at step {state.step}; resume with --resume-from-checkpoint {path}")
            window, normalizers = read_window(run, batches)
            sums += update(run, wrapped, window, normalizers)
            state.step += 1
            log.count_step(run.order.step_size)
            if run.is_finished or state.step % config.logging_steps == 0:
                means = (sums / (state.step - since)).tolist()
                values = dict(zip((*names, "grad_norm"), means, strict=True))
                log.log_training(state.step, run.epoch, {**values, "lr": float(run.scheduler.get_last_lr()[0])})
                sums, since = torch.zeros_like(sums), state.step
            if run.is_checkpoint_step:
                run.evaluate_and_save(log)


def start_accelerator(config: TrainConfig) -> Accelerator:
    """Choose devices, processes and precision. Raises ConfigError for a precision or tracker that is not available.

    accelerate itself would continue in float32, or without a tracker.
    """
    if config.with_tracking and config.report_to in ("trackio", "wandb"):
        require("trackers", f"report_to={config.report_to}", config.report_to)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no supported trackers")  # an error below
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=config.report_to if config.with_tracking else None,
            project_dir=config.output_dir,
        )
    error = find_unavailable(config, accelerator)
    if error is not None:
        AcceleratorState._reset_state(reset_partial_state=True)
        raise error
    if accelerator.mixed_precision == "bf16" and accelerator.device.type == "cpu" and not cpu_has_bf16():
        logger.warning(
            "mixed_precision: this CPU has no instructions for bf16, which makes it many times slower than float32; "
            "--mixed-precision no is faster here"
        )
    return accelerator


def find_unavailable(config: TrainConfig, accelerator: Accelerator) -> ConfigError | None:
    """The error for a precision or tracker that is not available here, None if both are."""
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        return OptionError("mixed_precision", "bf16 or no on a CPU", "fp16", "fp16 needs a GPU")
    if config.with_tracking and not accelerator.log_with:
        advice = f"install {config.report_to}, or use tensorboard, which is always installed"
        return OptionError("report_to", "a tracker that is installed here", config.report_to, advice)
    return None


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for bf16; otherwise torch computes in bf16 on one thread, very slowly."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def find_splits_of(config: TrainConfig) -> tuple[dict[str, Split], list[str]]:
    """The splits that a run reads, and notes on how they were found. Raises DatasetError where there are none."""
    return find_splits(
        Path(config.dataset_name) if config.dataset_name else None,
        train_annotations=config.train_annotations,
        train_images=config.train_images,
        valid_annotations=config.valid_annotations,
        valid_images=config.valid_images,
        test_annotations=config.test_annotations,
        test_images=config.test_images,
        valid_split=config.valid_split,
        rules=ReadRules(config.crowd, config.incomplete_images),
        dataset_format=config.dataset_format,
        classes=config.classes,
    )


def load_data(config: TrainConfig) -> dict[str, CocoData]:
    """The splits by name. Raises DatasetError that lists every fault that would stop or spoil training."""
    splits, notes = find_splits_of(config)
    if "train" not in splits:
        raise DatasetError(f"{config.dataset_name}: expected training data, got only {', '.join(splits)}")
    undecided = {name for name in ("num_queries", "scale_min") if config.recipe and name not in config.model_fields_set}
    num_queries = None if config.num_queries == "auto" or "num_queries" in undecided else config.num_queries
    report = check_data(
        splits,
        notes,
        num_queries=num_queries,
        canvas=(config.image_height, config.image_width),
        options=config.read_options,
        scale_min=None if "scale_min" in undecided else config.scale_min,
        full=False,
    )
    report.raise_errors()
    logger.info("%s", report.text(limit=5))
    return report.data


def prepare_folder(config: TrainConfig) -> None:
    """Create the run folder. Raises UserError when it cannot be written, or holds another run."""
    output_dir = Path(config.output_dir)
    check_writable(output_dir)
    if config.resume_from_checkpoint is None and (list_checkpoints(output_dir) or (output_dir / "last").exists()):
        raise OptionError(
            "output_dir",
            "a folder without a run",
            f"{output_dir} with an earlier run",
            "resume it with --resume-from-checkpoint latest, or choose another --output-dir",
        )


def prepare_hub_repository(config: TrainConfig) -> str | None:
    """Create the repository for `push_to_hub` before the run, so that a refusal does not come after hours.

    Returns its name, USER/NAME, or None without `push_to_hub`.
    """
    if not config.push_to_hub:
        return None
    name = config.hub_model_id or Path(config.output_dir).resolve().name
    return prepare_repository(name, private=config.hub_private_repo, token=config.hub_token)


def write_config(config: TrainConfig) -> None:
    """Write the resolved configuration, after everything that can refuse it."""
    text = json.dumps(config.model_dump(mode="json"), indent=2) + "\n"
    write_text(Path(config.output_dir) / "train_config.json", text)


def start_run(config: TrainConfig, accelerator: Accelerator, data: dict[str, CocoData]) -> tuple[Run, nn.Module]:
    """The run at step 0 or at its checkpoint, and its model as accelerate wraps it for training."""
    torch.manual_seed(config.seed)  # every process starts from the same weights
    model = build_model(config, data["train"])
    num_images = len(data["train"].images)
    batch_size, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    state = RunState(step_size=batch_size * accumulation * accelerator.num_processes, num_images=num_images)
    last_step = config.max_train_steps or -(-config.num_train_epochs * num_images // state.step_size)
    for line in judge_length(config, last_step, state.step_size):
        logger.warning("%s", line)
    optimizer = build_optimizer(model, config)
    scheduler = build_scheduler(optimizer, config, last_step)
    torch.manual_seed(config.seed + 1 + accelerator.process_index)  # from here on: the random points of the losses
    saved: OptimizationState | None = None
    if config.resume_from_checkpoint is not None:
        state, saved = load_progress(config, accelerator, model, state, last_step)
    averaged = AveragedWeights(model, config.ema_decay, accelerator.device) if config.ema_decay else None
    wrapped, prepared = accelerator.prepare(model, optimizer)
    if saved is not None:
        restore_optimization(saved, accelerator, prepared, scheduler, averaged)
    run = Run(
        config=config,
        accelerator=accelerator,
        data=data,
        model=model,
        processor=build_processor(config, model),
        optimizer=prepared,
        scheduler=scheduler,
        order=TrainingOrder(
            num_images,
            batch_size=batch_size,
            accumulation=accumulation,
            rank=accelerator.process_index,
            num_processes=accelerator.num_processes,
            seed=config.seed,
            first_step=state.step,
            last_step=last_step,
        ),
        averaged=averaged,
        description_at_start=describe_run(config, data),
        state=state,
    )
    return run, wrapped


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
def read_batches(run: Run) -> Iterator[Iterator[Batch]]:
    """This process's batches from the run's current step to its last one; the workers end with the block.

    The workers are ended explicitly: after an error its traceback keeps their iterator alive until Python ends, which
    would then wait for them for ever, since they ignore the signal by which it ends them.
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
    batches = iter(loader)
    try:
        yield batches
    finally:
        if config.dataloader_num_workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]  # no public name for it


def read_window(run: Run, batches: Iterator[Batch]) -> tuple[list[Batch], Tensor]:
    """The batches of one optimiser step, and what its losses are divided by (see `loss_normalizers`).

    The normalisers are sums over all processes. Raises DatasetError for an image that cannot be read.
    """

    def read() -> list[Batch]:
        try:
            return [next(batches) for _ in range(run.config.gradient_accumulation_steps)]
        except DatasetError as error:  # a worker's error arrives with its traceback as text
            raise DatasetError(str(error).rpartition("DatasetError: ")[2].strip()) from None

    window = run_on_all(run.accelerator, read)
    model_config = run.model.config
    labels = [classes for batch in window for classes in batch["class_labels"]]
    local = loss_normalizers(labels, model_config.num_queries, model_config.no_object_weight)
    return window, sum_over_processes(run.accelerator, local).float()


def logged_losses(run: Run) -> tuple[str, ...]:
    """Names of the losses in a line of metrics.jsonl: the whole loss first, then its parts."""
    return (*LOGGED, "loss_seed") if run.model.config.query_init == "seeds" else LOGGED


def update(run: Run, wrapped: nn.Module, window: list[Batch], normalizers: Tensor) -> Tensor:
    """Do one optimiser step; returns the logged losses over all processes, then the gradient's norm, float64.

    Raises UserError with the image ids, on all processes and before any weight changes, when a loss or the gradient is
    not finite. (In fp16 an infinite gradient is normal now and then: the gradient scaler skips that step.)
    """
    accelerator, device = run.accelerator, run.accelerator.device
    names = logged_losses(run)
    local = torch.zeros(len(names), device=device)
    suspects: list[int] = []
    for number, batch in enumerate(window, start=1):
        with nullcontext() if number == len(window) else accelerator.no_sync(wrapped):
            output = wrapped(  # Mask2FormerDinov3Output
                pixel_values=batch["pixel_values"].to(device, non_blocking=True),
                pixel_mask=batch["pixel_mask"].to(device, non_blocking=True),
                mask_labels=[masks.to(device, non_blocking=True) for masks in batch["mask_labels"]],
                class_labels=[classes.to(device, non_blocking=True) for classes in batch["class_labels"]],
                normalizers=normalizers,
            )
            # With the normalisers, losses add up over processes; but DDP averages gradients, hence the factor.
            accelerator.backward(output.loss * accelerator.num_processes)
        parts = torch.stack([output.loss, *(output.loss_dict[name] for name in names[1:])]).detach()
        if not torch.isfinite(parts).all():
            suspects += batch["image_ids"]
        local += parts
    summed = sum_over_processes(accelerator, local)
    if not torch.isfinite(summed).all():
        raise describe_not_finite(run, "loss", suspects)
    norm = accelerator.clip_grad_norm_(wrapped.parameters(), run.config.max_grad_norm or float("inf"))
    if accelerator.scaler is None and not torch.isfinite(norm):
        raise describe_not_finite(run, "gradient", [image for batch in window for image in batch["image_ids"]])
    run.optimizer.step()
    if not accelerator.optimizer_step_was_skipped:
        run.scheduler.step()
        if run.averaged:
            run.averaged.update(run.state.step + 1)
    run.optimizer.zero_grad(set_to_none=True)
    return torch.cat([summed, torch.as_tensor(norm).double().cpu().view(1)])


def describe_not_finite(run: Run, what: str, image_ids: list[int]) -> UserError:
    """The error for an optimiser step that must not be done. image_ids: those of this process; all are reported."""
    images = gather_object(image_ids)
    resume = "; resume with --resume-from-checkpoint latest" if list_checkpoints(run.output_dir) else ""
    return UserError(
        f"step {run.state.step + 1}: expected a finite {what}, got one that is not, on images {images}; check these "
        f"images with check-data, lower --learning-rate, or use --mixed-precision bf16 instead of fp16{resume}"
    )
