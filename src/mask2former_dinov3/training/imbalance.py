"""The options against imbalanced classes, applied to the training data: `repeat_factor` and `class_weights`."""

from __future__ import annotations

import logging

from ..config.train_config import TrainConfig
from ..data.array_types import Floats
from ..data.class_balance import automatic_class_weights, image_repeat_factors, weights_by_label
from ..data.coco import CocoData
from ..data.statistics import statistics_of

logger = logging.getLogger(__name__)
_SHOWN = 50  # classes named in the log


def repeat_factors_of(config: TrainConfig, data: CocoData) -> Floats | None:
    """How often each image of the training split is shown in an epoch, (I,); None: once."""
    if config.repeat_factor is None:
        return None
    return image_repeat_factors(data, config.repeat_factor)


def describe_repetition(config: TrainConfig, factors: Floats) -> str:
    """What repeat-factor sampling does to this data, for the log."""
    text = (
        f"repeat_factor {config.repeat_factor:g}: {(factors > 1).sum():,} of {len(factors):,} images are repeated, the "
        f"largest factor is {factors.max():.2f}, an epoch has about {factors.sum():,.0f} images instead of "
        f"{len(factors):,}"
    )
    return text if (factors > 1).any() else text + "; each class is in more images than that, so nothing changes"


def label_weights_of(config: TrainConfig, data: CocoData) -> list[float] | None:
    """The weight of each label in the loss, (K,); None: 1 each. Raises OptionError for a name that is no class."""
    given = config.class_weights
    if given is None:
        return None
    return weights_by_label(automatic_class_weights(data) if given == "auto" else given, data)


def resolve_class_weights(config: TrainConfig, data: CocoData) -> dict[str, float] | None:
    """The weight of each class of the training data by name, and logged. As `label_weights_of`."""
    weights = label_weights_of(config, data)
    if weights is None:
        return None
    counts = statistics_of(data).per_class
    of_class = dict(zip(counts, weights, strict=True))
    shown = ", ".join(f"{name} {of_class[name]:g} ({counts[name]:,} instances)" for name in list(counts)[:_SHOWN])
    more = len(counts) - _SHOWN
    kind = " auto" if config.class_weights == "auto" else ""
    logger.info("class_weights%s: %s%s", kind, shown, f", and {more} more" if more > 0 else "")
    return of_class
