"""The training run, top to bottom: data, model, loop."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from transformers.utils.logging import disable_progress_bar

from ..atomic_files import write_text
from ..config.train_config import TrainConfig
from ..data.check import check_data
from ..data.coco import CocoData
from ..data.coco_types import Metrics
from ..data.dataset import Batch
from ..data.json_stream import without_collector
from ..data.records import with_class_order
from ..data.sampler import EpochPlan, TrainingOrder
from ..errors import CheckpointError, DatasetError, is_shared, mark_shared
from ..folder_lock import hold_folder
from ..inference.compiled_predict import compile_network
from ..model_folder.hub import prepare_repository, push_finished
from .apply_recipe import apply_recipe, judge_length
from .batch_size import images_per_step, keep_stored_batch
from .batches import explain_dead_worker, read_batches, read_window, training_dataset
from .build_model import build_model, build_processor, resolve_auto
from .checkpoint import OptimizationState, RngState, RunState, best_folder, find_checkpoint
from .distributed import end_processes_at_exit, is_lost_peer, run_on_main, sum_over_processes
from .drawn_split import keep_drawn_split
from .ema import AveragedWeights
from .find_data import find_splits_of
from .imbalance import describe_repetition, repeat_factors_of
from .launch import start_accelerator
from .memory_advice import explain_full_memory
from .metrics_log import MetricsLog
from .optimizer import build_optimizer, build_scheduler
from .optimizer_step import HALF_DONE, logged_losses, update
from .rehearsal import rehearse
from .resume import (
    LONGER,
    class_order,
    get_rng_state,
    keep_place_in_schedule,
    load_progress,
    restore_optimization,
)
from .run import Run
from .run_description import describe_run
from .run_folder import Score, best_so_far, digest_of, prepare_folder, set_aside_newer
from .run_pictures import show_samples
from .shared_data import share_data
from .signals import StopRequest
from .time_budget import TimeBudget

logger = logging.getLogger(__name__)


def train(config: TrainConfig) -> Metrics:
    """Train as `config` says; returns the metrics of the last evaluation (empty without validation data).

    Writes the run folder `config.output_dir`, which is locked for the run; with `push_to_hub` also uploads the best
    model to the hub. Raises UserError (a ValueError) for what the user can fix, and KeyboardInterrupt after a requested
    stop. In both cases the last finished step is saved.
    """
    started = time.monotonic()
    disable_progress_bar()  # transformers shows one for every file that it writes
    accelerator = start_accelerator(config)
    with end_processes_at_exit(accelerator, config.process_group_timeout), lock_run(accelerator, config):
        run_on_main(accelerator, lambda: prepare_folder(config))
        checkpoint: Path | None = None
        if config.resume_from_checkpoint is not None:  # before the data and the model, which take minutes
            checkpoint = find_from_all(config)
            config = keep_stored_batch(config, checkpoint, accelerator.num_processes)
        load = partial(load_data, config, checkpoint)
        with share_data(accelerator, Path(config.output_dir), load) as data:
            config = resolve_auto(apply_recipe(config, data["train"], accelerator), data["train"])
            repo = run_on_main(accelerator, lambda: prepare_hub_repository(config))
            run, wrapped = start_run(config, accelerator, data, checkpoint, started)
            with StopRequest() as stop:
                with explain_full_memory(run):
                    run = rehearse(run, stop)
                config = run.config
                run_on_main(accelerator, lambda: write_config(config))
                run_on_main(accelerator, lambda: keep_drawn_split(run))
                if config.with_tracking:
                    flat = {k: v for k, v in config.model_dump().items() if isinstance(v, int | float | str | bool)}
                    accelerator.init_trackers("tracking", config=flat)
                run_on_main(accelerator, lambda: set_aside_newer(run.output_dir, run.state.step))
                with explain_full_memory(run):
                    loop(run, wrapped, stop)
    if repo is not None:  # on the main process; the others need not wait for the upload
        folder, private = best_folder(run.output_dir), config.hub_private_repo
        logger.info("uploading %s to %s", folder, repo)
        logger.info("uploaded: %s", push_finished(folder, repo, private=private, token=config.hub_token))
    return run.state.last_metrics


@contextmanager
def lock_run(accelerator: Accelerator, config: TrainConfig) -> Iterator[None]:
    """Hold the lock of the run folder, on the main process. Raises OptionError when another command has it."""
    with ExitStack() as held:
        lock = hold_folder(Path(config.output_dir), "output_dir", "train")
        run_on_main(accelerator, lambda: held.enter_context(lock))
        yield


def find_from_all(config: TrainConfig) -> Path:
    """The checkpoint to resume from. Every process raises the same error."""
    try:
        return find_checkpoint(str(config.resume_from_checkpoint), Path(config.output_dir))
    except ValueError as error:
        raise mark_shared(error) from None


def loop(run: Run, wrapped: nn.Module, stop: StopRequest) -> None:
    """Optimiser steps from the run's current step to its last one, with logging, saving and evaluation in between.

    wrapped: `run.model` as accelerate prepared it. A step is saved before it is evaluated. After an error, too, the
    last finished step is saved.
    """
    config, state = run.config, run.state
    log = MetricsLog(
        run.accelerator,
        run.output_dir,
        first_step=state.step,
        num_steps=run.last_step,
        evaluates=run.is_behind,
    )
    rng_state = get_rng_state()  # at the end of the last finished step
    with log, read_batches(run) as batches:
        try:
            run.plan_end()  # the hours before a resume may be all that there are
            run_on_main(run.accelerator, lambda: show_first_samples(run, log))
            if run.is_behind:
                logger.info("step %d is saved, what follows it was not finished: doing it now", state.step)
                run.save_checkpoint(rng_state)
                run.complete_step(log, stop)
            wrapped.train()
            names = logged_losses(run)
            sums, since = torch.zeros(len(names) + 1, dtype=torch.float64), state.step
            run.budget.start_step()
            while not run.is_finished:
                if bool(sum_over_processes(run.accelerator, torch.tensor([float(stop.requested)]))[0]):
                    raise mark_shared(KeyboardInterrupt())
                sums += do_step(run, wrapped, batches)
                rng_state = get_rng_state()
                log.count_step(run.order.step_size, run.last_step)
                if run.is_finished or state.step % config.logging_steps == 0:
                    means = (sums / (state.step - since)).tolist()
                    values = dict(zip((*names, "grad_norm"), means, strict=True))
                    log.log_training(state.step, run.epoch, {**values, "lr": float(run.scheduler.get_last_lr()[0])})
                    sums, since = torch.zeros_like(sums), state.step
                if run.is_checkpoint_step:
                    run.budget.start_checkpoint()
                    log.flush()
                    run.save_checkpoint(rng_state)
                    run.complete_step(log, stop)
        except (Exception, KeyboardInterrupt) as error:
            log.flush()
            told = end_early(run, log, error, rng_state)
            if told is None:
                raise
            raise told from None if isinstance(error, KeyboardInterrupt) else error


def show_first_samples(run: Run, log: MetricsLog) -> None:
    """Draw what the network will see, for the run folder and the tracker, at the start of a run."""
    if run.state.step:
        return
    data = run.data["train"]
    sheet = show_samples(run.output_dir, data, training_dataset(run.config, run.processor, data), run.order.plan)
    if sheet is not None:
        log.log_picture(0, "training samples", sheet)


def do_step(run: Run, wrapped: nn.Module, batches: Iterator[Batch]) -> torch.Tensor:
    """The next optimiser step; returns its losses as `update` does."""
    window, normalizers = read_window(run, batches)
    losses = update(run, wrapped, window, normalizers)
    run.state.step += 1
    run.state.finished = False
    run.budget.end_step()
    run.plan_end()
    return losses


def end_early(run: Run, log: MetricsLog, error: BaseException, rng_state: RngState) -> BaseException | None:
    """Save the last finished step where that is possible, and say so; returns what to raise instead of the error."""
    step, saved = run.state.step, save_before_end(run, error, rng_state)
    if not isinstance(error, KeyboardInterrupt):
        if saved is not None:
            logger.warning("step %d is saved; resume with --resume-from-checkpoint %s", step, saved)
        return explain_dead_worker(error)
    if saved is None:
        return None
    if run.accelerator.is_main_process:
        run.report(log, f"It was stopped on request at step {step} of {run.order.last_step}.")
    return mark_shared(KeyboardInterrupt(f"stopped at step {step}; resume with --resume-from-checkpoint {saved}"))


def save_before_end(run: Run, error: BaseException, rng_state: RngState) -> Path | None:
    """Save the last finished step of a run that ends with an error, if that is possible; returns its checkpoint.

    A second signal, which asks to stop at once, saves nothing. None also when no step was done.
    """
    num_processes, step = run.accelerator.num_processes, run.state.step
    if run.saved_steps and run.saved_steps[-1] == step:
        return run.checkpoint_path
    together = num_processes == 1 or is_shared(error)
    is_second_signal = isinstance(error, KeyboardInterrupt) and not is_shared(error)
    is_spoilt = HALF_DONE in getattr(error, "__notes__", ()) or isinstance(error, CheckpointError)
    if step == 0 or is_second_signal or is_spoilt or not (together or run.accelerator.is_main_process):
        return None
    if not together and not is_lost_peer(error, num_processes):
        logger.warning("this process failed alone; it saves without the random states of the others")
    try:
        return run.save_checkpoint(rng_state, alone=not together)
    except Exception as failure:
        logger.warning("step %d could not be saved: %s", step, failure)
        return None


@without_collector()
def load_data(config: TrainConfig, checkpoint: Path | None = None) -> dict[str, CocoData]:
    """The splits by name. Raises DatasetError that lists every fault that would stop or spoil training.

    checkpoint: the one to resume from, in whose order the classes of the training data then are.
    """
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
    if checkpoint is None:
        return report.data
    train = report.data["train"]
    names = class_order(checkpoint, [category.name for category in train.categories])
    return report.data if names is None else {**report.data, "train": with_class_order(train, names)}


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


def start_run(
    config: TrainConfig, accelerator: Accelerator, data: dict[str, CocoData], checkpoint: Path | None, started: float
) -> tuple[Run, nn.Module]:
    """The run at step 0 or at its checkpoint, and its model as accelerate wraps it for training.

    started: `time.monotonic` at the start of the command.
    """
    torch.manual_seed(config.seed)  # every process starts from the same weights
    model = build_model(config, data["train"], checkpoint)
    order = plan_order(config, accelerator, data["train"])
    last_step = order.last_step
    state = RunState(step_size=order.step_size, num_images=len(data["train"].images))
    optimizer = build_optimizer(model, config)
    scheduler = build_scheduler(optimizer, config, last_step)
    torch.manual_seed(config.seed + 1 + accelerator.process_index)  # from here on: the random points of the losses
    saved: OptimizationState | None = None
    scored_on = (digest_of(data["valid"]) if "valid" in data else "", config.max_detections)
    if checkpoint is not None:
        state, saved = load_progress(config, accelerator, model, state, last_step, checkpoint)
        now = Score(state.step, config.metric_for_best_model, None, *scored_on)
        known = (state.best_metric, state.best_step)
        state.best_metric, state.best_step = best_so_far(Path(config.output_dir), now, known)
    if config.torch_compile:
        compile_network(model)
    averaged = AveragedWeights(model, config.ema_decay, accelerator.device) if config.ema_decay else None
    wrapped, prepared = accelerator.prepare(model, optimizer)
    if saved is not None and checkpoint is not None:
        keep_place_in_schedule(config, saved, state, last_step, checkpoint)
        restore_optimization(saved, accelerator, prepared, scheduler, averaged)
    order.first_step = state.step
    run = Run(
        config=config,
        accelerator=accelerator,
        data=data,
        model=model,
        processor=build_processor(config, model, data["train"]),
        optimizer=prepared,
        scheduler=scheduler,
        order=order,
        averaged=averaged,
        description_at_start=describe_run(config, data),
        state=state,
        scored_on=scored_on,
        budget=TimeBudget(config.max_hours, state.seconds, started),
    )
    if checkpoint is not None and checkpoint.resolve() == run.checkpoint_path.resolve():
        run.saved_steps.append(state.step)
    if state.finished and run.is_finished:
        logger.info("the run is finished: step %d of %d; %s", state.step, last_step, how_longer(run))
    return run, wrapped


def plan_order(config: TrainConfig, accelerator: Accelerator, data: CocoData) -> TrainingOrder:
    """The images of each step of the run, from the first one on. data: the training split.

    Says how often images are repeated, and whether the run is long enough.
    """
    images, batch_size = images_per_step(config), config.per_device_train_batch_size
    batch_size = batch_size if isinstance(batch_size, int) else 1  # until `rehearse` has found one
    factors = repeat_factors_of(config, data)
    if factors is not None:
        logger.info("%s", describe_repetition(config, factors))
    step_size = images * accelerator.num_processes
    seen = EpochPlan(len(data.images), config.seed, factors).start(config.num_train_epochs)
    last_step = config.max_train_steps or -(-seen // step_size)
    for line in judge_length(config, last_step, step_size):
        logger.warning("%s", line)
    return TrainingOrder(
        len(data.images),
        batch_size=batch_size,
        accumulation=images // batch_size,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
        seed=config.seed,
        last_step=last_step,
        repeat_factors=factors,
    )


def how_longer(run: Run) -> str:
    """What to change so that a finished run goes on."""
    if run.is_out_of_patience:
        return "raise --early-stopping-patience to train longer"
    return "raise --max-hours to train longer" if run.is_out_of_time else LONGER
