"""What the model cards of a run say about it."""

from __future__ import annotations

from pathlib import Path

from ..config.presets import SPLIT_OPTIONS
from ..config.train_config import PATHS, TrainConfig
from ..data.coco import CocoData
from ..data.statistics import statistics_of
from ..model_folder.card import RunDescription
from ..model_folder.folder import collect_versions

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
