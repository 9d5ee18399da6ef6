"""What a caller asks of a model in use: checked once, carried through every verb that predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from statistics import median
from typing import TYPE_CHECKING, Literal, get_args

from ..errors import OptionError
from .score_calibration import UNCHANGED, ScoreCalibration

if TYPE_CHECKING:
    from .network import NetworkConfig

LARGEST_COUNT = 2**31 - 1  # COCO's evaluation counts in 32 bits
SMALLEST_TILE = 32  # pixels a side
LARGEST_OVERLAP = 0.5  # fraction of a tile; at half, a pixel would lie in three tiles of one row
_ROUNDING = 1 - 2.0**-20  # more than float32 and the two maps of a score can lose
DEFAULT_THRESHOLD = 0.5  # of a model without a threshold of its own

Tta = Literal["none", "horizontal", "both", "all"]
"""Views of test-time augmentation, in the words of the training option `flip`."""
Threshold = float | Mapping[str, float] | Sequence[float]
"""Of all classes, or of each: by its name, or in the order of the labels."""


@dataclass(frozen=True)
class InferenceSettings:
    """How a model is used.

    threshold: minimum score of a reported instance, 0 to 1; or one for each class, by its name or in the order of the
    labels; None: the model's own (see `for_model`). max_detections: maximum number of instances per image, or per tile
    where there are tiles; None: the number of the model's queries. batch_size: images (or tiles) per forward pass.
    tile: side of a tile in pixels, None for whole images. overlap: fraction of a tile that it shares with each
    neighbour. copy_overlap: instances are dropped of which more than this fraction lies in a better one of their class,
    1 for none; None: the model's own. tta: predict mirrored and turned copies, too, and merge (`views`): "horizontal" 2
    views, "both" 4, "all" 8. score_calibration: what reported scores, and so the threshold, are made with; None: the
    model's own.

    Raises OptionError for a value that is not in its range; NaN is in none.
    """

    threshold: Threshold | None = None
    max_detections: int | None = None
    batch_size: int = 1
    tile: int | None = None
    overlap: float = 0.2
    copy_overlap: float | None = None
    tta: Tta = "none"
    score_calibration: ScoreCalibration | None = None

    def __post_init__(self) -> None:
        for one in _each(self.threshold):
            if not _is_score(one):
                raise OptionError("threshold", "a score from 0 to 1", one)
        counts = {"max_detections": self.max_detections, "batch_size": self.batch_size}
        for name, value in counts.items():
            if value is None and name == "max_detections":
                continue
            if value is None or not _is_whole(value) or value < 1:
                raise OptionError(name, "a whole number above 0", value)
            if value > LARGEST_COUNT:
                raise OptionError(name, f"at most {LARGEST_COUNT:,}", value)
        if self.tile is not None and (not _is_whole(self.tile) or self.tile < SMALLEST_TILE):
            raise OptionError("tile", f"a whole number of pixels, at least {SMALLEST_TILE}", self.tile)
        if self.tile is not None and self.tile > LARGEST_COUNT:
            raise OptionError("tile", f"at most {LARGEST_COUNT:,} pixels", self.tile)
        if not 0 <= self.overlap < LARGEST_OVERLAP:
            raise OptionError("overlap", f"a fraction from 0 to below {LARGEST_OVERLAP}", self.overlap)
        if self.copy_overlap is not None and not 0 < self.copy_overlap <= 1:
            raise OptionError("copy_overlap", "a fraction above 0, up to 1 for none", self.copy_overlap)
        if self.tta not in get_args(Tta):
            raise OptionError("tta", f"one of {', '.join(get_args(Tta))}", self.tta)

    def for_model(self, config: NetworkConfig) -> InferenceSettings:
        """The same with the model's own values for what is None; a threshold of each class in the order of the labels.

        Raises OptionError for thresholds by name that are not those of the model's classes.
        """
        threshold = self.threshold if self.threshold is not None else config.score_threshold
        if isinstance(threshold, Mapping):
            threshold = _by_label(threshold, config)
        elif isinstance(threshold, Sequence) and len(threshold) != config.num_labels:
            raise OptionError("threshold", f"{config.num_labels} thresholds, one per class", len(threshold))
        own = config.copy_overlap if self.copy_overlap is None else self.copy_overlap
        calibration = self.score_calibration
        if calibration is None and config.score_calibration is not None:
            calibration = ScoreCalibration(*config.score_calibration)
        return replace(
            self,
            threshold=DEFAULT_THRESHOLD if threshold is None else threshold,
            max_detections=self.max_detections or config.num_queries,
            copy_overlap=1.0 if own is None else own,
            score_calibration=calibration,
        )

    @property
    def threshold_in_order(self) -> float | tuple[float, ...]:
        """The threshold of all classes, or of each in the order of the labels. Raises OptionError for some by name."""
        if isinstance(self.threshold, Mapping):
            raise OptionError("threshold", "thresholds in the order of the labels", "by name", "use settings.for_model")
        given = DEFAULT_THRESHOLD if self.threshold is None else self.threshold
        return tuple(given) if isinstance(given, Sequence) else given

    @property
    def network_threshold(self) -> float | tuple[float, ...]:
        """The least score of the network: of all classes, or of each in the order of the labels.

        A little below the threshold where scores are calibrated, so that no rounding leaves out a result at the
        threshold; `finish_instances` looks again. Raises OptionError for thresholds by name.
        """
        given = self.threshold_in_order
        if self.score_calibration is None or self.score_calibration == UNCHANGED:
            return given
        least = self.score_calibration.undo(_each(given)) * _ROUNDING
        return tuple(least.tolist()) if isinstance(given, tuple) else float(least[0])

    def for_parts(self) -> InferenceSettings:
        """Those of parts of an image that are merged later: with scores of the network, and all copies."""
        return replace(self, threshold=self.network_threshold, copy_overlap=1.0, score_calibration=UNCHANGED)


def _by_label(threshold: Mapping[str, float], config: NetworkConfig) -> tuple[float, ...]:
    names = [str(config.id2label[label]) for label in range(config.num_labels)]
    if set(threshold) != set(names):
        missing, unknown = sorted(set(names) - set(threshold)), sorted(set(threshold) - set(names))
        got = "; ".join(
            f"{text} {', '.join(some)}" for text, some in (("none for", missing), ("unknown:", unknown)) if some
        )
        raise OptionError("threshold", "one threshold for each class of the model", got)
    return tuple(threshold[name] for name in names)


def describe_threshold(settings: InferenceSettings, config: NetworkConfig) -> str:
    """One line on the threshold in use, and where it comes from. settings: as the caller gave them."""
    from ..model.configuration import threshold_text  # torch, which not every user of this module loads

    if settings.threshold is not None:
        given = dict(enumerate(_each(settings.threshold)))
        return f"score threshold {threshold_text({str(one): value for one, value in given.items()}, None)}, as given"
    if config.score_threshold is None:
        return f"score threshold {DEFAULT_THRESHOLD:g}: the model stores none; `evaluate` finds the best"
    return f"score threshold {threshold_text(config.score_threshold, config.score_threshold_source)}, of the model"


def one_threshold(settings: InferenceSettings) -> float:
    """The threshold where there is room for one number only: of thresholds by class their median."""
    return float(median(_each(settings.threshold) or [DEFAULT_THRESHOLD]))


def _each(threshold: Threshold | None) -> list[float]:
    """All numbers of a threshold; none for None."""
    if isinstance(threshold, Mapping):
        return list(threshold.values())
    if isinstance(threshold, Sequence):
        return list(threshold)
    return [] if threshold is None else [threshold]


def _is_score(value: object) -> bool:
    return isinstance(value, Real) and 0 <= float(value) <= 1


def _is_whole(value: object) -> bool:
    """Whether a value is an integer of Python or NumPy; callers without a type checker may give others."""
    return isinstance(value, Integral)


DEFAULTS = InferenceSettings()
