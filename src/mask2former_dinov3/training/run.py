"""A training run: its parts, how it is evaluated, and what it saves."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.optim.lr_scheduler import LambdaLR

from ..config.train_config import TrainConfig
from ..data.coco import CocoData
from ..data.coco_types import CocoResult, Metrics
from ..data.layout import Split
from ..data.records import ImageTable
from ..data.sampler import TrainingOrder
from ..errors import mark_shared
from ..evaluation.calibration_fit import calibrate_results
from ..evaluation.coco_ap import evaluate_coco
from ..evaluation.evaluate import predict_split
from ..evaluation.threshold_choice import stored_threshold, without_curves
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..inference.settings import DEFAULT_THRESHOLD
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..model_folder.card import Overlay, RunDescription
from ..model_folder.card_picture import choose_image, draw_card_picture
from ..model_folder.folder import save_model_folder
from ..weights.lora import adapter_state
from .bad_images import bad_images_allowed, too_many_unreadable
from .checkpoint import (
    OptimizationState,
    RngState,
    RunState,
    remove_old_checkpoints,
    save_checkpoint,
    update_checkpoint,
)
from .device_memory import explain_full_evaluation
from .distributed import run_on_all, run_on_main
from .ema import AveragedWeights
from .metrics_log import MetricsLog
from .optimizer import warmup_steps
from .run_folder import Score, score_entries, set_aside_best
from .run_pictures import show_progress
from .run_report import report_run, store_results
from .signals import StopRequest
from .time_budget import TimeBudget, move_schedule

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of a run. Only the content of `state`, the weights and `saved_steps` change.

    data: the splits by name, with "train". averaged: EMA of the weights, None without `ema_decay`.
    description_at_start: for the model cards, at step 0. scored_on: what `best/` is chosen on: a digest of the
    validation data, and `max_detections`. budget: of hours. saved_steps: whose checkpoints this process has saved.
    """

    config: TrainConfig
    accelerator: Accelerator
    data: dict[str, CocoData]
    model: Mask2FormerDinov3ForInstanceSegmentation
    processor: Mask2FormerDinov3ImageProcessor
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    order: TrainingOrder
    averaged: AveragedWeights | None
    description_at_start: RunDescription
    state: RunState
    scored_on: tuple[str, int]
    budget: TimeBudget
    saved_steps: list[int] = field(default_factory=list)

    @property
    def output_dir(self) -> Path:
        """The run folder."""
        return Path(self.config.output_dir)

    @property
    def scored_model(self) -> Mask2FormerDinov3ForInstanceSegmentation:
        """The model that is evaluated and saved in `best/` and `last/`: that of the EMA if there is one."""
        return self.averaged.model if self.averaged else self.model

    @property
    def description(self) -> RunDescription:
        """What the model card says about the run at its current step."""
        return replace(self.description_at_start, step=self.state.step, step_size=self.state.step_size)

    @property
    def epoch(self) -> float:
        """Passes over the training images so far."""
        return self.order.epochs_at(self.state.step)

    @property
    def last_step(self) -> int:
        """The last optimiser step; with `max_hours` the planned one."""
        planned = self.budget.planned
        return self.order.last_step if planned is None else min(planned, self.order.last_step)

    @property
    def is_out_of_time(self) -> bool:
        """Whether the hours end the run before its last step: the schedule has ended, or no further step fits."""
        if self.config.max_hours is None or self.state.step >= self.order.last_step:
            return False
        return self.state.step >= self.last_step or self.scheduler.last_epoch >= self.order.last_step

    @property
    def is_out_of_patience(self) -> bool:
        """Whether `early_stopping_patience` ends the run."""
        patience = self.config.early_stopping_patience
        return patience is not None and self.state.evaluations_without_better >= patience

    @property
    def is_finished(self) -> bool:
        """Whether the last optimiser step is done, or no further one is wanted."""
        return self.state.step >= self.order.last_step or self.is_out_of_time or self.is_out_of_patience

    @property
    def end_reason(self) -> str:
        """Why a finished run has ended, a sentence."""
        state, config = self.state, self.config
        if self.is_out_of_patience:
            best = f"{config.metric_for_best_model} {state.best_metric or 0:.4f} of step {state.best_step}"
            return (
                f"It ended early at step {state.step} of {self.order.last_step}: {state.evaluations_without_better} "
                f"evaluations without a better model than {best} (early_stopping_patience)."
            )
        if self.is_out_of_time:
            used = f"{self.budget.used / 3600:.2f} of {config.max_hours:g} hours are used (max_hours)"
            return f"It ended at step {state.step} of {self.order.last_step}: {used}."
        return "It ended with its last step."

    @property
    def saves_per_step(self) -> float:
        """Checkpoints per optimiser step."""
        every = self.config.checkpointing_steps
        if every == "epoch":
            return self.order.epochs_at(1)
        return 0.0 if every is None else 1 / every

    def plan_end(self) -> None:
        """With `max_hours`, plan the last step by the time that is left; every process must call this."""
        self.budget.plan(self.accelerator, self.state.step, self.order.last_step, self.saves_per_step)

    def step_schedule(self) -> None:
        """Move the learning rate on by the step that is being done."""
        if self.config.max_hours is not None:
            most, position = self.order.last_step, float(self.scheduler.last_epoch)
            warmup = warmup_steps(self.config, most)
            moved = move_schedule(position, self.state.step, self.last_step, most, warmup)
            self.scheduler.last_epoch = moved - 1  # type: ignore[assignment]  # the schedules take any number
        self.scheduler.step()

    @property
    def is_checkpoint_step(self) -> bool:
        """Whether to evaluate and save now: every `checkpointing_steps`, at each epoch's end, or at the run's end."""
        every, step = self.config.checkpointing_steps, self.state.step
        if self.is_finished:
            return True
        if every == "epoch":
            return self.order.epochs_done(step) > self.order.epochs_done(step - 1)
        return every is not None and step % int(every) == 0

    @property
    def is_behind(self) -> bool:
        """Whether the run stands at a checkpoint after which something is left to do, as after a kill."""
        if self.state.step == 0 or not self.is_checkpoint_step:
            return False
        if self.is_finished:
            return not self.state.finished
        return "valid" in self.data and self.state.last_metrics.get("step") != self.state.step

    @property
    def checkpoint_path(self) -> Path:
        """The folder of the checkpoint of the current step."""
        return self.output_dir / f"checkpoint-{self.state.step}"

    @property
    def score(self) -> Score:
        """The number by which the best model is chosen, of the last validation."""
        metric, last = self.config.metric_for_best_model, self.state.last_metrics
        value = last.get(metric) if last.get("step") == self.state.step else None
        data, limit = self.scored_on
        defined = float(value) if isinstance(value, int | float) and value >= 0 else None
        return Score(self.state.step, metric, defined, data, limit)

    def evaluate(
        self, split: str, stop: StopRequest, records: ImageTable | None = None
    ) -> tuple[Metrics, list[CocoResult], Split]:
        """COCO metrics of a split at the images' original size, the results behind them, and what was scored.

        The processes share the images; all of them return the same. Scores of the validation split are calibrated again
        if that helps, as `best/` will give them. records: only some of its images. Images that cannot be read are not
        scored, which the notes say. Raises DatasetError when they are more than `max_bad_images` allows, and
        KeyboardInterrupt, on all processes, when a stop is requested.
        """
        data, accelerator = self.data[split], self.accelerator
        if records is not None:
            data = replace(data, images=records)
        unreadable: dict[int, str] = {}

        def predict() -> list[CocoResult]:
            batch_size = self.config.per_device_eval_batch_size
            with explain_full_evaluation(batch_size), accelerator.autocast(), stop.at_once():
                return predict_split(
                    self.scored_model,
                    self.processor,
                    data,
                    batch_size=batch_size,
                    max_detections=max(self.config.max_detections, self.model.config.num_queries),
                    rank=accelerator.process_index,
                    world=accelerator.num_processes,
                    progress=accelerator.is_main_process and not sys.stderr.isatty(),  # a terminal has the bar of steps
                    unreadable=unreadable if self.config.max_bad_images else None,
                    network_scores=split == "valid",
                )

        results: list[CocoResult] = gather_object(run_on_all(accelerator, predict))
        unreadable = {key: text for found in gather_object([unreadable]) for key, text in found.items()}
        count = len(self.data[split].images)
        allowed = bad_images_allowed(self.config.max_bad_images, count)
        if len(unreadable) > allowed:
            raise mark_shared(too_many_unreadable(split, unreadable.values(), allowed, count))

        source = data.source or Split(split, data.annotations, data.annotations.parent)
        ids = frozenset(record.id for record in data.images if record.id not in unreadable)
        scored = replace(source, image_ids=ids)

        def score() -> Metrics:
            with stop.at_once():
                limit = self.config.max_detections
                return evaluate_coco(scored, results, max_detections=limit, calibrate=split == "valid")

        shared: list[Metrics] = [run_on_main(accelerator, score) or {}]
        broadcast_object_list(shared)
        results = calibrate_results(results, shared[0]["operating_point"].get("calibration"))
        if unreadable:
            note = f"{len(unreadable)} of {count} images could not be read and are not scored"
            shared[0]["notes"] = [*shared[0].get("notes", []), note]
            logger.warning("%s: %s:%s", split, note, "".join(f"\n  {text}" for text in unreadable.values()))
        return shared[0], results, scored

    def complete_step(self, log: MetricsLog, stop: StopRequest) -> None:
        """What follows the checkpoint of a step: evaluate, and save `best/` if the model is the best so far.

        At the end of the run also `finish`. After a kill all of it is done again, which gives the same.
        """
        results: list[CocoResult] = []
        if "valid" in self.data:
            metrics, results, scored = self.evaluate("valid", stop)
            point = without_curves(metrics["operating_point"])  # a checkpoint and a card need no curves
            self.state.last_metrics = {**metrics, "operating_point": point, "step": self.state.step}
            stored = stored_threshold(point)
            self.scored_model.config.update(stored)
            log.log_evaluation(self.state.step, self.epoch, "valid", metrics)
            run_on_main(self.accelerator, lambda: self._show_progress(log, results, metrics))
            value = self.score.value
            if value is None:
                logger.warning("%s is undefined, so best/ stays as it is", self.config.metric_for_best_model)
            self._count_evaluation(value)
            if value is not None and (self.state.best_metric is None or value >= self.state.best_metric):
                # On a tie, the longer trained.
                run_on_main(self.accelerator, lambda: set_aside_best(self.output_dir, self.score))
                self.save_folder("best", results)
                run_on_main(self.accelerator, lambda: store_results(self.output_dir, scored, results, metrics))
                self.state.best_metric, self.state.best_step = value, self.state.step
        counts = {name: len(data.images) for name, data in self.data.items()}
        self.budget.end_checkpoint(counts.get("test", 0) / counts["valid"] if "valid" in counts else None)
        self.plan_end()
        if self.is_finished:
            self.finish(log, stop, results)
        run_on_main(self.accelerator, self.update_checkpoint)
        log.restart_clock()
        self.budget.start_step()

    def _show_progress(self, log: MetricsLog, results: Sequence[CocoResult], metrics: Metrics) -> None:
        """Draw what an evaluation has found in a few images, for the run folder and the tracker."""
        chosen = metrics["operating_point"]["threshold"]
        threshold = DEFAULT_THRESHOLD if chosen is None else chosen
        step, options = self.state.step, self.processor.read_options
        sheet = show_progress(self.output_dir, step, self.data["valid"], results, threshold, options)
        if sheet is not None:
            log.log_picture(step, "validation images", sheet)

    def _count_evaluation(self, value: float | None) -> None:
        """Count evaluations without a better metric. value: of this one, which may be done again after a kill."""
        state = self.state
        is_better = value is not None and (
            state.best_metric is None or value > state.best_metric or state.best_step == state.step
        )
        state.evaluations_without_better = 0 if is_better else state.evaluations_without_better + 1

    def finish(self, log: MetricsLog, stop: StopRequest, results: Sequence[CocoResult]) -> None:
        """The end of the run, when the last step is saved and evaluated: `last/`, then the test data if there are any.

        What else belongs to the end of a run comes here. results: of the last validation.
        """
        self.save_folder("last", results)
        if "test" in self.data:
            log.log_evaluation(self.state.step, self.epoch, "test", self.evaluate("test", stop)[0])
        reason = self.end_reason
        if self.is_out_of_patience or self.is_out_of_time:
            logger.info("%s", reason)
        run_on_main(self.accelerator, lambda: self.report(log, reason))
        self.state.finished = True

    def report(self, log: MetricsLog, stopped: str) -> None:
        """Write the report of the run, on the main process; some of its pictures go to the tracker."""
        step = self.state.best_step or self.state.step
        report_run(self.output_dir, stopped, partial(log.log_picture, step))

    def update_checkpoint(self) -> None:
        """Write what was measured after the checkpoint of this step was saved into it."""
        self.state.seconds = self.budget.used
        update_checkpoint(
            self.checkpoint_path,
            self.model,
            self.processor,
            self.state,
            self.description,
            self.config.model_dump(mode="json"),
        )

    def save_folder(self, name: str, results: Sequence[CocoResult]) -> None:
        """Save a model folder in the run folder. results: of the last validation, for the picture on its card."""

        def write() -> None:
            description = replace(self.description, overlay=self.draw_overlay(results))
            save_model_folder(
                self.scored_model,
                self.processor,
                self.output_dir / name,
                self.state.last_metrics,
                description,
                self.config.with_code,
                score_entries(self.score),
            )

        run_on_main(self.accelerator, write)

    def draw_overlay(self, results: Sequence[CocoResult]) -> Overlay | None:
        """The picture for the model card: the results of one validation image drawn into it."""
        if "valid" not in self.data:
            return None
        image = choose_image(self.data["valid"].images)
        shown = [result for result in results if result["image_id"] == image.id]
        return draw_card_picture(image, shown, self.data["valid"].categories, self.processor.read_options)

    def save_checkpoint(self, rng_state: RngState, *, alone: bool = False) -> Path:
        """Save a checkpoint, then remove the oldest ones beyond `save_total_limit`; returns the new folder.

        rng_state: the random state of this process at the end of the step. alone: the other processes are gone, so
        theirs are left out. What this run has saved already is not saved again.
        """
        if self.saved_steps and self.saved_steps[-1] == self.state.step:
            return self.checkpoint_path
        self.state.seconds = self.budget.used
        rng_states = [rng_state] if alone else gather_object([rng_state])
        optimization: OptimizationState = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            "averaged": self.averaged.state_dict() if self.averaged else None,
            "adapters": adapter_state(self.model),
        }

        def write() -> None:
            save_checkpoint(
                self.output_dir,
                self.model,
                self.processor,
                optimization,
                rng_states,
                self.state,
                self.description,
                self.config.model_dump(mode="json"),
            )
            remove_old_checkpoints(self.output_dir, self.config.save_total_limit)

        if alone:
            write()
        else:
            run_on_main(self.accelerator, write)
        self.saved_steps.append(self.state.step)
        return self.checkpoint_path
