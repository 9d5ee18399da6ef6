"""A training run: its parts, how it is evaluated, and what it saves."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.optim.lr_scheduler import LambdaLR

from ..config.presets import SPLIT_OPTIONS
from ..config.train_config import PATHS, TrainConfig
from ..data.coco import CocoData
from ..data.coco_types import CocoResult, Metrics
from ..data.sampler import TrainingOrder
from ..data.statistics import statistics_of
from ..evaluation.coco_ap import evaluate_coco
from ..evaluation.evaluate import predict_split
from ..evaluation.threshold_choice import stored_threshold, without_curves
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..model_folder.card import Overlay, RunDescription
from ..model_folder.card_picture import choose_image, draw_card_picture
from ..model_folder.folder import collect_versions, save_model_folder
from ..weights.lora import adapter_state
from .checkpoint import OptimizationState, RunState, remove_old_checkpoints, save_checkpoint
from .distributed import run_on_all, run_on_main
from .ema import AveragedWeights
from .metrics_log import MetricsLog
from .resume import get_rng_state
from .run_report import report_run, store_results

logger = logging.getLogger(__name__)
NOT_ON_CARD = (  # options that tell a reader of the model card nothing about the model
    *("description", "output_dir", "dataset_name", *SPLIT_OPTIONS, "resume_from_checkpoint"),
    *("dataloader_num_workers", "save_total_limit", "logging_steps", "with_tracking", "report_to"),
    *("push_to_hub", "hub_model_id", "hub_private_repo"),
)


def describe_run(config: TrainConfig, data: dict[str, CocoData]) -> RunDescription:
    """What the model cards of a run say about it, at step 0.

    Cards are public, so of absolute paths they show the last part only.
    """
    options = config.model_dump(mode="json")
    for name in PATHS:
        if options[name] is not None and Path(options[name]).is_absolute():
            options[name] = Path(options[name]).name
    folders = data["train"].annotations.resolve().parents
    named = next((folder.name for folder in folders if folder.name not in ("annotations", "train")), "")
    given = config.dataset_name or named
    counts = {name: statistics_of(split) for name, split in data.items()}
    return RunDescription(
        name=(config.hub_model_id or Path(config.output_dir).resolve().name).rpartition("/")[2],
        dataset=Path(given).resolve().name if Path(given).exists() else given,  # else an id of the hub, USER/NAME
        splits={name: (count.images, count.instances) for name, count in counts.items()},
        options=options,
        changed={
            name: options[name]
            for name, field in TrainConfig.model_fields.items()
            if name in options and name not in NOT_ON_CARD and options[name] != field.default
        },
        made_by=collect_versions(),
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of a run. Only the content of `state` and the weights change.

    data: the splits by name, with "train". averaged: EMA of the weights, None without `ema_decay`.
    description_at_start: for the model cards, at step 0.
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
        return self.state.step * self.order.step_size / self.order.num_images

    @property
    def is_finished(self) -> bool:
        """Whether the last optimiser step is done."""
        return self.state.step >= self.order.last_step

    @property
    def is_checkpoint_step(self) -> bool:
        """Whether to evaluate and save now: every `checkpointing_steps`, at each epoch's end, or at the run's end."""
        every, step = self.config.checkpointing_steps, self.state.step
        if self.is_finished:
            return True
        if every == "epoch":
            return self.order.epochs_done(step) > self.order.epochs_done(step - 1)
        return every is not None and step % int(every) == 0

    def evaluate(self, split: str) -> tuple[Metrics, list[CocoResult]]:
        """COCO metrics of a split at the images' original size, and the results that they are computed from.

        The processes share the images; all of them return the same.
        """
        data, accelerator = self.data[split], self.accelerator

        def predict() -> list[CocoResult]:
            with accelerator.autocast():
                return predict_split(
                    self.scored_model,
                    self.processor,
                    data,
                    batch_size=self.config.per_device_eval_batch_size,
                    max_detections=max(self.config.max_detections, self.model.config.num_queries),
                    device=accelerator.device,
                    rank=accelerator.process_index,
                    world=accelerator.num_processes,
                )

        results: list[CocoResult] = gather_object(run_on_all(accelerator, predict))
        metrics = run_on_main(
            accelerator,
            lambda: evaluate_coco(
                data.source or data.annotations,
                results,
                max_detections=self.config.max_detections,
                image_ids=[record.id for record in data.images],
            ),
        )
        if metrics:
            metrics["operating_point"] = without_curves(metrics["operating_point"])
        shared: list[Metrics] = [metrics or {}]
        broadcast_object_list(shared)
        return shared[0], results

    def evaluate_and_save(self, log: MetricsLog) -> None:
        """Evaluate on the validation data, save `best/` if the model is the best so far, then a checkpoint.

        At the end of the run also save `last/`, and evaluate on the test data if there are any.
        """
        results: list[CocoResult] = []
        if "valid" in self.data:
            metrics, results = self.evaluate("valid")
            self.state.last_metrics = {**metrics, "step": self.state.step}
            stored = stored_threshold(metrics["operating_point"], f"{self.description.dataset}, valid")
            self.scored_model.config.update(stored)
            log.log_evaluation(self.state.step, self.epoch, "valid", metrics)
            value = metrics[self.config.metric_for_best_model]
            if self.state.best_metric is None or value >= self.state.best_metric:  # on a tie, the longer trained
                self.state.best_metric, self.state.best_step = value, self.state.step
                self.save_folder("best", results)
                run_on_main(
                    self.accelerator, lambda: store_results(self.output_dir, self.data["valid"], results, metrics)
                )
        self.save_checkpoint()
        if self.is_finished:
            self.save_folder("last", results)
            if "test" in self.data:
                log.log_evaluation(self.state.step, self.epoch, "test", self.evaluate("test")[0])
            run_on_main(self.accelerator, lambda: report_run(self.output_dir, "It ended with its last step."))
        log.restart_clock()

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
            )

        run_on_main(self.accelerator, write)

    def draw_overlay(self, results: Sequence[CocoResult]) -> Overlay | None:
        """The picture for the model card: the results of one validation image drawn into it."""
        if "valid" not in self.data:
            return None
        image = choose_image(self.data["valid"].images)
        shown = [result for result in results if result["image_id"] == image.id]
        return draw_card_picture(image, shown, self.data["valid"].categories, self.processor.read_options)

    def save_checkpoint(self) -> Path:
        """Save a checkpoint, then remove the oldest ones beyond `save_total_limit`; returns the new folder."""
        rng_states = gather_object([get_rng_state()])
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

        run_on_main(self.accelerator, write)
        return self.output_dir / f"checkpoint-{self.state.step}"
