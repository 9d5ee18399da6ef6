"""What a run leaves for people: the results of its best model, and the report on them, in the run folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from ..atomic_files import write_json, write_text
from ..data.coco_types import CocoResult, Metrics
from ..data.layout import Split
from ..errors import UserError
from ..evaluation.coco_files import read_ground_truth
from ..evaluation.result_ids import write_names
from ..evaluation.run_record import read_run
from ..evaluation.scored_model import METRICS_FILE
from ..evaluation.stored_evaluation import EVALUATION_FILE, write_evaluation
from ..model_folder.folder import collect_versions
from ..reports.evaluation_pictures import ShowPicture
from ..reports.evaluation_report import report_folder, report_run_alone

logger = logging.getLogger(__name__)


def store_results(output_dir: Path, split: Split, results: Sequence[CocoResult], metrics: Metrics) -> None:
    """Write what `evaluate` writes, for the results of the best model so far, into the run folder.

    split: what was scored. metrics: of the results, with max_detections. Raises CheckpointError when they cannot be
    written.
    """
    truth = read_ground_truth(split)
    write_text(output_dir / "predictions.json", json.dumps(results) + "\n")
    write_names(output_dir, truth.listed)
    write_json(output_dir / METRICS_FILE, metrics)
    write_evaluation(output_dir, split, truth, metrics["max_detections"], output_dir / "best")


def report_run(output_dir: Path, stopped: str, show: ShowPicture | None = None) -> None:
    """Write report.html and report.json of a run that ends. stopped: where and why, a sentence. show: takes some of the
    pictures, for the tracker.

    Without validation data they hold the run alone. What cannot be written or read is a warning: the model is saved
    already, and what follows the run goes on.
    """
    try:
        record = read_run(output_dir, stopped, collect_versions())
        if (output_dir / EVALUATION_FILE).is_file():
            page = report_folder(output_dir, run=record, show=show)
        else:
            page = report_run_alone(output_dir, record)
    except (UserError, OSError) as error:
        logger.warning("no report: %s", error)
    else:
        logger.info("report: %s", page)
