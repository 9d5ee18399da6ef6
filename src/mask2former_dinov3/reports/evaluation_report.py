"""Write the report of an evaluation: report.html, report.json, and the labels in doubt as files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ..atomic_files import write_text
from ..data.coco_types import Metrics
from ..data.faults import FaultReport
from ..data.layout import Split
from ..data.locate import locate_images
from ..evaluation.coco_files import GroundTruth, ScoredMask
from ..evaluation.doubt_files import write_doubts
from ..evaluation.operating_point import BEST_F1, Aim
from ..evaluation.report_numbers import Findings, count_findings, numbers_to_json
from ..evaluation.run_record import RunRecord
from ..evaluation.verdict import verdict_of
from ..read_options import AS_STORED, ReadOptions
from ..version import __version__
from .data_report import PAGE
from .evaluation_charts import CHART_STYLE
from .evaluation_pictures import EvaluationPictures
from .evaluation_sections import errors_section, numbers_section, run_section, verdict_section
from .html_page import page, write_page
from .image_source import ImageSource
from .layered_pictures import LAYER_STYLE
from .picture_store import PictureStore

NUMBERS = "report.json"
PICTURES_FOLDER = "report_pictures"
_STYLE = """
.verdict { max-width: 52rem; padding-left: 1.4rem; } .verdict li { margin: .4rem 0; }
.image { margin: 1rem 0 1.75rem; content-visibility: auto; contain-intrinsic-size: auto 700px; }
.image > .layered { max-width: 62.5rem; }
a { color: var(--note); }
@media print { .image { content-visibility: visible; } .layered input, .layered label { display: none; } }
"""


def write_evaluation_report(
    truth: GroundTruth,
    results: Sequence[ScoredMask],
    metrics: Metrics,
    folder: Path,
    title: str,
    paths: Mapping[int, Path],
    *,
    run: RunRecord | None = None,
    num_queries: int | None = None,
    aim: Aim = BEST_F1,
    options: ReadOptions = AS_STORED,
) -> Path:
    """Write report.html, report.json, labels_in_doubt.json and labels_in_doubt.csv into `folder`; returns the page.

    metrics: those of the results. paths: number of an image -> its file; one that is not known is drawn grey. run: the
    training run that the results are from. num_queries: of the model, if known. aim: what thresholds are chosen for.
    options: how images are read.
    The number of pictures is bounded, whatever the number of images. Raises CheckpointError for what cannot be written.
    """
    findings = count_findings(truth, results, metrics, aim=aim)
    sentences = verdict_of(findings, num_queries)
    content = {
        "title": title,
        "version": __version__,
        "verdict": [asdict(one) for one in sentences],
        **numbers_to_json(findings),
        "run": None if run is None else asdict(run),
    }
    write_text(folder / NUMBERS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_doubts(findings, folder)
    store = PictureStore()
    pictures = EvaluationPictures(findings, ImageSource(paths, truth.sizes, options), store)
    parts = [
        verdict_section(sentences, metrics.get("notes", [])),
        *([run_section(run)] if run is not None else []),
        numbers_section(findings),
        errors_section(findings),
        pictures.images_section(),
        pictures.doubts_section(),
    ]
    style = CHART_STYLE + LAYER_STYLE + _STYLE
    whole = page(f"Report: {title}", _lead(findings), parts, style, files_beside=True)
    write_page(folder / PAGE, store.place(whole, folder, PICTURES_FOLDER))
    return folder / PAGE


def _lead(findings: Findings) -> str:
    return f"Scored on {findings.truth.name}. mask2former-dinov3 {__version__}."


def find_pictures(truth: GroundTruth, names: Mapping[int, str], split: Split) -> dict[int, Path]:
    """Number of an image -> its file, of those that are found. names: by image number."""
    ids = {number: key for key, number in truth.images.items()}
    numbers = {key: number for number, key in ids.items()}
    wanted = {ids[number]: name for number, name in names.items()}
    found, unsure = locate_images(wanted, split, FaultReport(truth.name))
    return {numbers[key]: path for key, path in found.items() if key not in unsure and path.is_file()}
