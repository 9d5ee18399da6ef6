"""The labels in doubt as files for a labelling tool: COCO with one annotation for each, and a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from ..atomic_files import write_text
from ..data.faults import plain_cell
from .coco_files import ScoredMask
from .doubtful_labels import DoubtfulLabel
from .report_numbers import Findings

DOUBTS_JSON, DOUBTS_CSV = "labels_in_doubt.json", "labels_in_doubt.csv"
_COLUMNS = (
    *("rank", "kind", "suspicion", "image_id", "file_name", "annotation_id", "label", "suggested_label"),
    *("score", "iou", "left", "top", "width", "height"),
)


def write_doubts(findings: Findings, folder: Path) -> None:
    """Write `labels_in_doubt.json` and `.csv` into a folder, the most suspicious label first.

    The COCO file holds the ids of images and classes of the annotation file, and for each label in doubt an annotation:
    the label's own mask, or for an object without a label the result's, with the suggested class. Beside COCO's keys:
    `doubt` (kind), `suspicion`, `annotation_id` (of the label, null without one), `suggested_category_id` (null without
    one), `score`, `iou`. Raises CheckpointError when they cannot be written.
    """
    truth = findings.truth
    of_number = {number: key for key, number in truth.categories.items()}
    entries: list[dict[str, object]] = []
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for rank, one in enumerate(findings.numbers.doubts, start=1):
        mask = _mask_of(one, findings)
        label = truth.annotations[one.item].get("source_id") if one.item >= 0 else None
        suggested = one.suggested or None
        counts = mask["segmentation"]["counts"]
        entries.append(
            {
                "id": rank,
                "image_id": findings.image_ids[one.image],
                "category_id": of_number[one.category or one.suggested],
                "segmentation": {
                    "size": mask["segmentation"]["size"],
                    "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
                },
                "bbox": mask["bbox"],
                "area": mask["area"],
                "iscrowd": 0,
                "doubt": one.kind,
                "suspicion": round(one.suspicion, 6),
                "annotation_id": label,
                "suggested_category_id": None if suggested is None else of_number[suggested],
                "score": one.score,
                "iou": round(one.iou, 6),
            }
        )
        row: Sequence[object] = (
            *(rank, one.kind, round(one.suspicion, 4), findings.image_ids[one.image], findings.file_names[one.image]),
            *("" if label is None else label, truth.names[one.category - 1] if one.category else ""),
            *(truth.names[one.suggested - 1] if one.suggested else "", round(one.score, 4), round(one.iou, 4)),
            *mask["bbox"],
        )
        writer.writerow([plain_cell(cell) for cell in row])
    content = {
        "images": list(truth.listed["images"]),
        "categories": list(truth.listed["categories"]),
        "annotations": entries,
    }
    write_text(folder / DOUBTS_JSON, json.dumps(content, ensure_ascii=False) + "\n")
    write_text(folder / DOUBTS_CSV, table.getvalue())


def _mask_of(one: DoubtfulLabel, findings: Findings) -> ScoredMask:
    """The mask to look at: that of the label, without one that of the result."""
    return findings.truth.annotations[one.item] if one.item >= 0 else findings.results[one.result]
