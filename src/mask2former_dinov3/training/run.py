"""A training run as it stands: evaluated, saved, and taken up again."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from ..config.train_config import PATHS, SPLIT_PATHS, TrainConfig
from ..data.coco import CocoData
from ..data.coco_types import CocoResult, Metrics
from ..data.sampler import TrainingOrder
from ..data.statistics import statistics_of
from ..errors import CheckpointError
from ..evaluation.coco_ap import evaluate_coco
from ..evaluation.evaluate import predict_split
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..model_folder.card import Overlay, RunDescription
from ..model_folder.card_picture import choose_image, draw_card_picture
from ..model_folder.folder import collect_versions, save_model_folder
from ..weights.lora import adapter_state
from .build_model import NETWORK
from .checkpoint import RunState, find_checkpoint, load_checkpoint, read_state, rotate, save_checkpoint
from .distributed import together
from .ema import AveragedWeights
from .metrics_log import RunLog

logger = logging.getLogger(__name__)

# What the optimisation goes on with may change at a restart, and so may whatever does not touch the numbers; the rest
# makes another model or other data, and the run would not be the one it says it is.
OPTIMISATION = (
    *("learning_rate", "backbone_lr_multiplier", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "lr_scheduler_type", "num_warmup_steps", "num_train_epochs", "max_train_steps"),
    "ema_decay",
)
FIXED = (
    *("backbone", "head", "seed", "valid_split", *NETWORK),
    *("freeze_backbone", "frozen_blocks", "layer_decay", "lora_rank", "lora_alpha", "lora_targets"),
    *("image_height", "image_width", "scale_min", "scale_max", "flip", "color_jitter", "copy_paste"),
)
RATES = ("initial_lr", "weight_decay", "betas", "eps")  # of a parameter group
# What says nothing of the model to somebody who reads its card.
UNTOLD = (
    *("description", "output_dir", "dataset_name", *SPLIT_PATHS, "resume_from_checkpoint"),
    *("dataloader_num_workers", "save_total_limit", "logging_steps", "with_tracking", "report_to"),
    *("push_to_hub", "hub_model_id", "hub_private_repo"),
)


def describe_run(config: TrainConfig, data: dict[str, CocoData]) -> RunDescription:
    """What the cards of a run's models say of it, before its first step.

    Cards are for the public: of absolute paths only the names are told.
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
            if name in options and name not in UNTOLD and options[name] != field.default
        },
        made_by=collect_versions(),
    )


def rng_state() -> dict[str, Any]:
    """State of torch's generators, the only ones whose past matters (the data draw from seed, epoch and image)."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng_state(state: dict[str, Any]) -> None:
    """Undo `rng_state`."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


class Run:
    """The parts of a run together: where it stands, how it is evaluated, saved and taken up again."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        data: dict[str, CocoData],
        model: Mask2FormerDinov3ForInstanceSegmentation,
        processor: Mask2FormerDinov3ImageProcessor,
        optimizer: Any,
        scheduler: Any,
        order: TrainingOrder,
        state: RunState,
    ) -> None:
        self.config, self.accelerator, self.data = config, accelerator, data
        self.model, self.processor = model, processor
        self.optimizer, self.scheduler = optimizer, scheduler
        self.order, self.state = order, state
        self.averaged: AveragedWeights | None = None
        self.output_dir = Path(config.output_dir)
        self.described = describe_run(config, data)
        self.overlay_results: list[CocoResult] = []  # of the last validation, for the image of the model card

    @property
    def scored(self) -> Mask2FormerDinov3ForInstanceSegmentation:
        """The model that is evaluated and saved in `best/` and `last/`."""
        return self.averaged.model if self.averaged else self.model

    @property
    def description(self) -> RunDescription:
        """What the model card says of the run as it stands."""
        return replace(self.described, step=self.state.step, step_size=self.state.step_size)

    @property
    def epoch(self) -> float:
        """Passes over the training images so far."""
        return self.state.step * self.order.step_size / self.order.num_images

    def load(self, resume_from: str) -> dict[str, Any]:
        """Weights, random state and place of a checkpoint; returns the states for `load_optimisation`.

        Raises CheckpointError when there is none, or when this run would not see the same images in the same steps.
        """
        path = find_checkpoint(resume_from, self.output_dir)
        state, options = read_state(path)
        self.compare_options(path, options)
        optimisation, rng_states = load_checkpoint(path, self.model)
        for what, then, now in (
            (
                "images per optimiser step (batch size x accumulation x processes)",
                state.step_size,
                self.order.step_size,
            ),
            ("training images", state.num_images, self.order.num_images),
        ):
            if then != now:
                raise CheckpointError(
                    f"{path} was made with {then} {what}, this run has {now}; set them equal, or start a new run"
                )
        if state.step >= self.order.last_step:
            raise CheckpointError(
                f"{path} is at step {state.step} of {self.order.last_step}: the run is finished already"
            )
        if len(rng_states) == self.accelerator.num_processes:
            set_rng_state(rng_states[self.accelerator.process_index])
        else:
            logger.warning("the number of processes has changed: the points of the losses are drawn anew")
        logger.info("resuming from %s: step %d of %d", path, state.step, self.order.last_step)
        self.state = state
        return optimisation

    def compare_options(self, path: Path, then: dict[str, Any]) -> None:
        """Say which options of the optimisation differ from `then`, those of the checkpoint.

        Raises CheckpointError that lists those which must not differ.
        """
        now = self.config.model_dump(mode="json")
        changed = [name for name in (*FIXED, *OPTIMISATION) if name in then and then[name] != now[name]]
        texts = {name: f"{name}: was {then[name]}, now {now[name]}" for name in changed}
        fixed = [f"\n  {texts[name]}" for name in changed if name in FIXED]
        if fixed:
            raise CheckpointError(
                f"{path} was made with other options; set them back, or start a new run:{''.join(fixed)}"
            )
        for name in changed:
            logger.warning("resuming with another %s", texts[name])

    def load_optimisation(self, states: dict[str, Any]) -> None:
        """Optimiser, schedule and gradient scaler where they were, at the rates and decays that are configured now."""
        configured = [{key: group[key] for key in RATES} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(states["optimizer"])
        self.scheduler.load_state_dict({**states["scheduler"], "base_lrs": self.scheduler.base_lrs})
        factors = [factor(self.scheduler.last_epoch) for factor in self.scheduler.lr_lambdas]
        for group, values, factor in zip(self.optimizer.param_groups, configured, factors, strict=True):
            group.update(values, lr=values["initial_lr"] * factor)
        if self.accelerator.scaler is not None and states["scaler"]:
            self.accelerator.scaler.load_state_dict(states["scaler"])
        if self.averaged and states.get("averaged"):  # else it starts from the weights of the checkpoint
            self.averaged.load_state_dict(states["averaged"])

    def is_checkpoint_step(self) -> bool:
        """After every so many steps, or at the first step that completes an epoch."""
        every, step = self.config.checkpointing_steps, self.state.step
        if every == "epoch":
            return self.order.epochs_done(step) > self.order.epochs_done(step - 1)
        return every is not None and step % int(every) == 0

    def evaluate(self, split: str) -> dict[str, Any]:
        """COCO metrics at original size on the untouched annotation file; the processes share the images."""
        data, accelerator = self.data[split], self.accelerator

        def predict() -> list[dict[str, Any]]:
            with accelerator.autocast():
                return predict_split(
                    self.scored,
                    self.processor,
                    data,
                    batch_size=self.config.per_device_eval_batch_size,
                    max_detections=self.config.max_detections,
                    device=accelerator.device,
                    rank=accelerator.process_index,
                    world=accelerator.num_processes,
                )

        results = gather_object(together(accelerator, predict) or [])
        if split == "valid":
            shown = choose_image(data.images).id
            self.overlay_results = [result for result in results if result["image_id"] == shown]
        metrics = together(
            accelerator,
            lambda: evaluate_coco(
                data.annotations,
                results,
                max_detections=self.config.max_detections,
                image_ids=[record.id for record in data.images],
            ),
            main_only=True,
        )
        shared: list[Any] = [metrics]
        broadcast_object_list(shared)
        return dict(shared[0])

    def evaluate_and_save(self, log: RunLog) -> None:
        """Metrics, `best/` when they are the best so far, then a checkpoint that knows of both."""
        if "valid" in self.data:
            metrics = self.evaluate("valid")
            self.state.last_metrics = cast("Metrics", {**metrics, "step": self.state.step})
            log.evaluation(self.state.step, self.epoch, "valid", metrics)
            value = metrics[self.config.metric_for_best_model]
            if self.state.best_metric is None or value >= self.state.best_metric:  # of equals the longer trained
                self.state.best_metric, self.state.best_step = value, self.state.step
                self.save_folder("best")
        self.save()
        log.restart_clock()

    def save_folder(self, name: str) -> None:
        """A model folder in the run folder, of the weights that were scored last."""

        def write() -> None:
            path, metrics = self.output_dir / name, self.state.last_metrics
            run = replace(self.description, overlay=self.overlay())
            save_model_folder(self.scored, self.processor, path, metrics, run, self.config.with_code)

        together(self.accelerator, write, main_only=True)

    def overlay(self) -> Overlay | None:
        """What the last validation found in the image that the model card shows."""
        if "valid" not in self.data:
            return None
        valid = self.data["valid"]
        return draw_card_picture(choose_image(valid.images), self.overlay_results, valid.categories)

    def save(self) -> Path:
        """A checkpoint, then the rotation of the old ones."""
        rng_states = gather_object([rng_state()])
        optimisation = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            "averaged": self.averaged.state_dict() if self.averaged else None,
            "adapters": adapter_state(self.model),
        }

        def write() -> None:
            run_config = self.config.model_dump(mode="json")
            save_checkpoint(
                self.output_dir,
                self.model,
                self.processor,
                optimisation,
                rng_states,
                self.state,
                run_config,
                self.description,
            )
            rotate(self.output_dir, self.config.save_total_limit)

        together(self.accelerator, write, main_only=True)
        return self.output_dir / f"checkpoint-{self.state.step}"

    def finish(self, log: RunLog) -> None:
        """`last/`, and the test set if there is one."""
        self.save_folder("last")
        if "test" in self.data:
            log.evaluation(self.state.step, self.epoch, "test", self.evaluate("test"))
