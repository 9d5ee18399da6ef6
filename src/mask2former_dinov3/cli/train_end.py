"""What `train` prints at its end: the best model with its numbers, and the commands to use it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .metrics_text import format_metric, metric_lines

if TYPE_CHECKING:
    from ..data.coco_types import Metrics

PROGRAM = "mask2former-dinov3"


def end_lines(folder: Path, last: Metrics) -> Iterator[str]:
    """The lines for a run that has ended. folder: of the run. last: metrics of its last evaluation, empty without one.

    The numbers are those of the model that the commands name.
    """
    from ..evaluation.scored_model import METRICS_FILE, read_metrics
    from ..evaluation.stored_evaluation import read_evaluation
    from ..training.checkpoint import best_folder
    from ..training.run_folder import read_score

    best = best_folder(folder)
    score = read_score(best)
    images = "IMAGES"
    try:
        evaluation = read_evaluation(folder)
        of_best = read_metrics(folder / METRICS_FILE)
    except UserError:  # nothing was evaluated, or the files of an earlier version
        evaluation = None
    if score is None or score.value is None or evaluation is None:
        yield "last evaluation" if last else "no validation data, so no AP was computed"
        yield from metric_lines(last) if last else ()
    else:
        yield f"best model: {score.metric} {score.value:.4f}, of step {score.step}"
        yield from metric_lines(of_best)
        step, value = last.get("step"), last.get(score.metric)
        if step != score.step:
            yield f"the last model, of step {step}, has {score.metric} {format_metric(value)}: {folder / 'last'}"
        images = shlex.quote(str(evaluation.split.images))
    model = shlex.quote(str(best))
    yield f"\nmodel: {best}"
    if last:
        output = shlex.quote(str(folder / "evaluation"))
        yield f"evaluate: {PROGRAM} evaluate --model {model} --output {output}"
    yield f"predict: {PROGRAM} predict --model {model} {images} --output {shlex.quote(str(folder / 'overlays'))}"
