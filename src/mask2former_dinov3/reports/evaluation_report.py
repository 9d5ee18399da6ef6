"""Write the report of an evaluation: report.html, report.json, and the labels in doubt as files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..atomic_files import write_text
from ..data.coco_types import Metrics
from ..errors import DatasetError, mismatch
from ..evaluation.coco_ap import read_named_results
from ..evaluation.coco_files import GroundTruth, ScoredMask, read_ground_truth
from ..evaluation.doubt_files import write_doubts
from ..evaluation.report_numbers import Findings, count_findings, numbers_to_json
from ..evaluation.run_record import RunRecord
from ..evaluation.scored_model import METRICS_FILE, describe_model, read_metrics
from ..evaluation.stored_evaluation import digest_of_truth, read_evaluation
from ..evaluation.verdict import verdict_of
from ..read_options import AS_STORED, ReadOptions
from ..version import __version__
from .data_report import PAGE
from .evaluation_charts import CHART_STYLE
from .evaluation_pictures import EvaluationPictures, ShowPicture
from .evaluation_sections import errors_section, run_section, scores_section, verdict_section
from .html_page import end_of_path, page, write_page
from .image_source import ImageSource, paths_of_images
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
    options: ReadOptions = AS_STORED,
    show: ShowPicture | None = None,
) -> Path:
    """Write report.html, report.json, labels_in_doubt.json and labels_in_doubt.csv into `folder`; returns the page.

    metrics: those of the results. paths: number of an image -> its file; one that is not known is drawn grey. run: the
    training run that the results are from. num_queries: of the model, if known. options: how images are read. show:
    takes the pictures of the first images, too.
    The number of pictures is bounded, whatever the number of images. Raises CheckpointError for what cannot be written.
    """
    findings = count_findings(truth, results, metrics)
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
        scores_section(findings),
        errors_section(findings),
        pictures.images_section(),
        pictures.doubts_section(),
    ]
    style = CHART_STYLE + LAYER_STYLE + _STYLE
    whole = page(f"Report: {title}", _lead(findings, run), parts, style, files_beside=True)
    write_page(folder / PAGE, store.place(whole, folder, PICTURES_FOLDER))
    if show is not None:
        pictures.show_first(show)
    return folder / PAGE


def _lead(findings: Findings, run: RunRecord | None) -> str:
    what = "The best model of a training run, scored" if run is not None else "Scored"
    return f"{what} on {end_of_path(findings.truth.name)}. mask2former-dinov3 {__version__}."


def report_run_alone(folder: Path, run: RunRecord) -> Path:
    """Write the report of a run without validation data: its log and options. Returns the page."""
    title = folder.resolve().name
    content = {"title": title, "version": __version__, "verdict": [], "run": asdict(run)}
    write_text(folder / NUMBERS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    lead = f"A training run without validation data, so nothing is scored. mask2former-dinov3 {__version__}."
    write_page(folder / PAGE, page(f"Report: {title}", lead, [run_section(run)]))
    return folder / PAGE


def report_folder(
    folder: Path, *, run: RunRecord | None = None, images: Path | None = None, show: ShowPicture | None = None
) -> Path:
    """Write the report of an evaluation folder into it; returns the page.

    The folder holds metrics.json, predictions.json, images.json and evaluation.json, as `evaluate` writes them. The
    ground truth is read again, where evaluation.json says. run: the training run that they are from. images: the folder
    of the images, None: that of the evaluation. show: see `write_evaluation_report`.
    Raises DatasetError where one of the files is missing or malformed, or the ground truth has changed since.
    """
    stored = read_evaluation(folder)
    if stored is None:
        expected = "an evaluation folder with evaluation.json"
        raise DatasetError(f"{folder}: {mismatch(expected, 'none', 'run evaluate first')}")
    truth = read_ground_truth(stored.split)
    if digest_of_truth(truth) != stored.digest:
        got = "other content: changed since"
        raise DatasetError(
            f"{stored.split.annotations}: {mismatch(f'the ground truth of {folder}', got, 'run evaluate again')}"
        )
    metrics = read_metrics(folder / METRICS_FILE)
    results, _ = read_named_results(truth, folder / "predictions.json")
    split = stored.split if images is None else replace(stored.split, images=images)
    num_queries, options = describe_model(stored.scored)
    title = folder.resolve().name if run is not None else Path(stored.scored).name
    paths = paths_of_images(truth, split)
    return write_evaluation_report(
        truth, results, metrics, folder, title, paths, run=run, num_queries=num_queries, options=options, show=show
    )
