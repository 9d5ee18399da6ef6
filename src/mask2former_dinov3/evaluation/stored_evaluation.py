"""What an evaluation was made on: `evaluation.json`, beside `metrics.json`; `evaluate` writes it, `compare` reads it.

It names the ground truth and how it was read, holds a digest of its content, and says what was scored, so that two
evaluations can be compared image by image later, and refused where they were made on different ground truths.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..atomic_files import write_json
from ..data.layout import Split
from ..data.numbers import identifier
from ..data.read_rules import CROWD_RULES, INCOMPLETE_RULES, ReadRules
from ..errors import DatasetError, mismatch
from ..json_files import describe, is_integer, read_json_object
from .coco_files import GroundTruth

EVALUATION_FILE = "evaluation.json"
_EXPECTED = "evaluation.json of evaluate (a JSON object with annotations and digest)"


@dataclass(frozen=True)
class StoredEvaluation:
    """The content of evaluation.json.

    split: the ground truth, with absolute paths. digest: of its content, see `digest_of_truth`. max_detections: per
    image and class, as in the score. scored: the path or hub id of the model, or the path of the results file.
    """

    split: Split
    digest: str
    max_detections: int
    scored: str


def names_of_images(truth: GroundTruth) -> dict[int, str]:
    """Number of the image -> its file name, for those that have one."""
    found: dict[int, str] = {}
    for entry in truth.listed["images"]:
        if isinstance(entry, Mapping) and isinstance(entry.get("file_name"), str):
            image_id = identifier(entry.get("id"))
            if image_id in truth.images:
                found[truth.images[image_id]] = entry["file_name"]
    return found


def digest_of_truth(truth: GroundTruth) -> str:
    """A digest (SHA-256) of what a score depends on: images with names and sizes, classes, objects with their masks.

    The same file at another place, or written with other spaces, has the same digest; other annotation ids too.
    """
    digest = hashlib.sha256()
    names = names_of_images(truth)
    for number, size in sorted(truth.sizes.items()):
        digest.update(json.dumps([number, names.get(number), *size]).encode())
    digest.update(json.dumps(truth.names).encode())
    for one in truth.annotations:
        counts = one["segmentation"]["counts"]
        digest.update(json.dumps([one["image_id"], one["category_id"], one["area"], one["iscrowd"]]).encode())
        digest.update(counts if isinstance(counts, bytes) else str(counts).encode())
    return digest.hexdigest()


def write_evaluation(folder: Path, split: Split, truth: GroundTruth, max_detections: int, scored: str | Path) -> None:
    """Write evaluation.json. Raises CheckpointError when it cannot be written."""
    content = {
        "annotations": _absolute(split.annotations),
        "images": _absolute(split.images),
        "only_images": split.only_images,
        "split": split.name,
        "image_ids": None if split.image_ids is None else sorted(split.image_ids),
        "format": split.format,
        "subset": split.subset,
        "classes": split.classes,
        "crowd": split.rules.crowd,
        "incomplete_images": split.rules.incomplete_images,
        "digest": digest_of_truth(truth),
        "max_detections": max_detections,
        "scored": _absolute(Path(scored)),
    }
    write_json(folder / EVALUATION_FILE, content)


def _absolute(path: Path) -> str:
    """The path from the root; a name on the hub stays as it is."""
    return str(path.absolute() if path.exists() else path)


def read_evaluation(folder: Path) -> StoredEvaluation | None:
    """The evaluation.json of a folder; None where there is none. Raises DatasetError for a malformed one."""
    path = folder / EVALUATION_FILE
    if not path.exists():
        return None
    content = read_json_object(path, _EXPECTED, raises=DatasetError)
    texts = ("annotations", "images", "split", "format", "subset", "digest", "scored")
    for key in texts:
        if not isinstance(content.get(key), str):
            raise _fault(path, key, "a text", content.get(key))
    if not is_integer(content.get("max_detections")):
        raise _fault(path, "max_detections", "a whole number", content.get("max_detections"))
    for key, known in (("crowd", CROWD_RULES), ("incomplete_images", INCOMPLETE_RULES)):
        if content.get(key) not in known:
            raise _fault(path, key, f"one of {', '.join(known)}", content.get(key))
    ids, classes = content.get("image_ids"), content.get("classes")
    if ids is not None and not (isinstance(ids, list) and all(map(is_integer, ids))):
        raise _fault(path, "image_ids", "a list of ids, or null", ids)
    if classes is not None and not isinstance(classes, dict):
        raise _fault(path, "classes", "a map of classes, or null", classes)
    split = Split(
        content["split"],
        Path(content["annotations"]),
        Path(content["images"]),
        image_ids=None if ids is None else frozenset(ids),
        only_images=content.get("only_images") is True,
        rules=ReadRules(content["crowd"], content["incomplete_images"]),
        format=content["format"],
        subset=content["subset"],
        classes=cast("dict[str, str | None] | None", classes),
    )
    return StoredEvaluation(split, content["digest"], content["max_detections"], content["scored"])


def _fault(path: Path, key: str, expected: str, got: Any) -> DatasetError:
    shown = json.dumps(got)[:60] if isinstance(got, str | int | float) else describe(got)
    return DatasetError(f"{path}: {key}: {mismatch(expected, shown, 'run evaluate again')}")
