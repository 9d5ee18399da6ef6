"""Types of the options: ranges of numbers, and the words that an option takes."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ..errors import OptionError, mismatch
from ..read_options import ALL, ReadOptions, check_image_scale
from .class_option import parse_class_map, parse_class_weights
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


def _check_order(value: list[int]) -> list[int]:
    if len(value) != 4 or value != sorted(value):
        raise ValueError(mismatch("four block numbers in increasing order", value))
    return value


def _digits_to_number(value: object) -> object:
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


def _split_at_commas(value: object) -> object:
    return value.split(",") if isinstance(value, str) and value != ALL else value


def _check_reading(option: str) -> AfterValidator:
    """The check that `ReadOptions` makes of one of its values."""

    def check(value: object) -> object:
        try:
            ReadOptions(**{option: value})  # type: ignore[arg-type]
        except OptionError as error:
            raise ValueError(error.reason) from error
        return value

    return AfterValidator(check)


def _as_scale(value: object) -> object:
    try:
        return check_image_scale(value)
    except OptionError as error:
        raise ValueError(error.reason) from error


DIGITS = BeforeValidator(_digits_to_number)  # of a number beside words: flags are texts, and some JSON has them so
Taps = Annotated[list[PositiveInt], BeforeValidator(_split_at_commas), AfterValidator(_check_order)]
Channels = Annotated[
    list[PositiveInt] | Literal["all"], BeforeValidator(_split_at_commas), _check_reading("channels")
]  # the word is `read_options.ALL`
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


def join_limits(value: object) -> object:
    """JSON's [LOW, HIGH] as "LOW,HIGH"."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def join_names(value: object) -> object:
    """Names as a text with commas: one form, so that the flag, the file and the tracker agree. Raises ValueError."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(mismatch("names of layers such as q_proj,v_proj", json.dumps(value, default=str)))
    return ",".join(name.strip() for name in names)


ClassNames = Annotated[dict[str, str | None], BeforeValidator(parse_class_map)]
ClassWeights = Annotated[
    Annotated[dict[str, float] | Literal["auto"], BeforeValidator(parse_class_weights)] | None,
    Field(
        description="Weight of each class in the classification loss, as a JSON object of names and numbers (1 for a "
        "class that is not named); `auto`: more for rare classes (see docs/finetuning.md); null: 1 each."
    ),
]
RepeatFactor = Annotated[
    Annotated[float, Field(gt=0, le=1)] | None,
    Field(
        description="Show images with rare classes more often: a class in a fraction f of the images is repeated "
        "sqrt(`repeat_factor` / f) times, an image as often as its rarest class (see docs/finetuning.md); null: no."
    ),
]
ValueRange = Annotated[str, BeforeValidator(join_limits), _check_reading("value_range")]
Scale = Annotated[float | str, AfterValidator(_as_scale)]
LayerNames = Annotated[str, BeforeValidator(join_names)]
DatasetFormat = Literal["auto", "coco", "yolo", "label-maps", "labelme", "voc", "cvat", "label-studio", "datasets"]
RecipeName = Literal["auto", "published", "few-images", "frozen", "full", "from-scratch"]  # files of `recipes/`
