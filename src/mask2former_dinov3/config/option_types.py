"""Types of the options: ranges of numbers, and the words that an option takes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .presets import LARGEST, LARGEST_QUERIES

PositiveInt = Annotated[int, Field(gt=0, le=LARGEST)]
NotNegativeInt = Annotated[int, Field(ge=0, le=LARGEST)]
PositiveFloat = Annotated[float, Field(gt=0, le=LARGEST)]
NotNegativeFloat = Annotated[float, Field(ge=0, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, le=10**18)]  # torch takes less than 2**63, and each process adds its number
Side = Annotated[int, Field(gt=0)]  # of the canvas; `check_side` has the rest
QueryCount = Annotated[int, Field(gt=0, le=LARGEST_QUERIES)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
ComparedOn = Literal["points", "pixels"]
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
]  # the names of transformers' SchedulerType that need no arguments of their own
Metric = Literal[
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "boundary_AP", "box_AP"
]  # the keys of metrics.json in which more is better
Tracker = Literal[
    "all", "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]  # accelerate's LoggerType

DatasetFormat = Literal["auto", "coco", "yolo", "label-maps", "labelme", "voc", "cvat", "datasets"]
RecipeName = Literal["auto", "published", "few-images", "frozen", "full", "from-scratch"]  # files of `recipes/`
