"""What an evaluation folder says beside its results: the metrics, and how the model reads images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from ..data.coco_types import Metrics, OperatingBlock, OperatingCurve
from ..data.faults import quote
from ..errors import DatasetError, mismatch
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..json_files import find_type_fault, is_integer, read_json_object
from ..read_options import AS_STORED, ReadOptions
from .score_curves import CURVE_IOUS

METRICS_FILE = "metrics.json"
_EXPECTED = "metrics.json of evaluate (a JSON object)"
_NUMBERS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "boundary_AP", "box_AP"),
    *("images", "detections", "max_detections"),
)
_AGAIN = "run `evaluate` of this version again"
_Fault = tuple[str, str, object]  # the place, what is expected there, what is there


def read_metrics(path: Path) -> Metrics:
    """The content of a metrics.json. Raises DatasetError where a part of it is missing or of another type."""
    content = read_json_object(path, _EXPECTED, raises=DatasetError)
    if (fault := find_type_fault(content, Metrics)) is not None:
        raise _error(path, fault)
    if missing := [key for key in _NUMBERS if key not in content]:
        raise DatasetError(f"{path}: {missing[0]}: {mismatch('a number', 'none', _AGAIN)}")
    if "operating_point" in content:
        _check_block(content["operating_point"], path)
    return cast("Metrics", content)


def read_operating_block(path: Path) -> OperatingBlock:
    """The operating point of a metrics.json. Raises DatasetError where there is none, or a part is wrong."""
    return _check_block(read_json_object(path, _EXPECTED, raises=DatasetError).get("operating_point"), path)


def _check_block(block: Any, path: Path) -> OperatingBlock:
    if not isinstance(block, Mapping):
        got = "one without" if block is None else f"{quote(block)} in its place"
        raise DatasetError(f"{path}: {mismatch('metrics with an operating_point', got, _AGAIN)}")
    fault = find_type_fault(block, OperatingBlock) or next(_find_value_faults(cast("OperatingBlock", block)), None)
    if fault is not None:
        raise _error(path, (": ".join(filter(None, ("operating_point", fault[0]))), *fault[1:]))
    return cast("OperatingBlock", block)


def _error(path: Path, fault: _Fault) -> DatasetError:
    place, expected, got = fault
    return DatasetError(f"{path}: {place}: {mismatch(expected, quote(got), _AGAIN)}")


def _find_value_faults(block: OperatingBlock) -> Iterator[_Fault]:
    """Values of the right type that cannot be."""
    fraction = "a number from 0 to 1"
    if block["iou"] != CURVE_IOUS[0]:
        yield "iou", f"{CURVE_IOUS[0]:g}", block["iou"]
    for name, overlap in (("threshold", block["threshold"]), ("copies: overlap", block["copies"]["overlap"])):
        if overlap is not None and not 0 <= overlap <= 1:
            yield name, fraction, overlap
    pairs = {f"intervals: {name}": one for name, one in block["intervals"].items()}
    pairs["copies: gain_interval"] = block["copies"]["gain_interval"]
    if (calibration := block.get("calibration")) is not None:
        before = calibration["before"]
        pairs |= {} if before is None else {"calibration: before": before}
        for name, scale in (("scale", calibration["scale"]), ("before: 1", (before or [1.0])[0])):
            if scale <= 0:
                yield f"calibration: {name}", "a number above 0", scale
    for name, pair in pairs.items():
        if len(pair) != 2:
            yield name, "two numbers", pair
    yield from _find_curve_faults("", {"points": block["points"], "default": block["default"]}, block["curves"])
    for name, one in block["per_class"].items():
        if not 0 <= one["threshold"] <= 1:
            yield f"per_class: {name}: threshold", fraction, one["threshold"]
        yield from _find_curve_faults(f"per_class: {name}: ", {"points": one["points"]}, one["curves"])


def _find_curve_faults(
    place: str, points: Mapping[str, Mapping[str, object]], curves: Mapping[str, OperatingCurve]
) -> Iterator[_Fault]:
    """Of the counts at a threshold and over all thresholds: an IoU that is missing, lists that do not fit."""
    ious = [f"{iou:.2f}" for iou in CURVE_IOUS]
    for name, known in {**points, "curves": curves}.items():
        if sorted(known) != ious:
            yield f"{place}{name}", f"the IoUs {' and '.join(ious)}", list(known)
    for iou, curve in curves.items():
        at = f"{place}curves: {iou}"
        if not len(curve["thresholds"]) == len(curve["right"]) == len(curve["wrong"]):
            yield at, "lists of one length", [len(one) for one in (curve["thresholds"], curve["right"], curve["wrong"])]
        if curve["thresholds"] != sorted(curve["thresholds"], reverse=True):
            yield f"{at}: thresholds", "numbers from the highest down", curve["thresholds"]


def describe_model(scored: str) -> tuple[int | None, ReadOptions]:
    """The queries of a model folder and how it reads images; None and the defaults for anything else, such as a results
    file or a name on the hub."""
    folder = Path(scored)
    if not (folder / "config.json").is_file() or not (folder / "preprocessor_config.json").is_file():
        return None, AS_STORED
    queries = read_json_object(folder / "config.json").get("num_queries")
    options = Mask2FormerDinov3ImageProcessor.from_pretrained(str(folder)).read_options
    return (queries if is_integer(queries) else None), options
