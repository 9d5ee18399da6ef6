"""What an evaluation folder says beside its results: the metrics, and how the model reads images."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from ..data.coco_types import Metrics
from ..errors import DatasetError, mismatch
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..json_files import describe, is_integer, read_json_object
from ..read_options import AS_STORED, ReadOptions

METRICS_FILE = "metrics.json"
_EXPECTED = "metrics.json of evaluate (a JSON object)"
_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "boundary_AP", "box_AP")


def read_metrics(path: Path) -> Metrics:
    """The content of a metrics.json. Raises DatasetError where a number of it is missing or no number."""
    content = read_json_object(path, _EXPECTED, raises=DatasetError)
    for key in (*_NUMBERS, "images", "detections", "max_detections"):
        value = content.get(key)
        whole = key not in _NUMBERS
        if not (is_integer(value) if whole else isinstance(value, int | float) and not isinstance(value, bool)):
            expected = "a whole number" if whole else "a number"
            raise DatasetError(f"{path}: {key}: {mismatch(expected, describe(value), 'run evaluate again')}")
    notes = content.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(one, str) for one in notes):
        raise DatasetError(f"{path}: notes: {mismatch('a list of texts', describe(notes), 'run evaluate again')}")
    return cast("Metrics", content)


def describe_model(scored: str) -> tuple[int | None, ReadOptions]:
    """The queries of a model folder and how it reads images; None and the defaults for anything else, such as a results
    file or a name on the hub."""
    folder = Path(scored)
    if not (folder / "config.json").is_file() or not (folder / "preprocessor_config.json").is_file():
        return None, AS_STORED
    queries = read_json_object(folder / "config.json").get("num_queries")
    options = Mask2FormerDinov3ImageProcessor.from_pretrained(str(folder)).read_options
    return (queries if is_integer(queries) else None), options
