"""The whole path on the bundled sample: check, train, evaluate, predict. Each step is a command that users can run."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from .old_options import HUB_BACKBONES

SAMPLE = Path(__file__).with_name("sample")


def demo(output: Path, *, say: Callable[[str], None], run: Callable[[list[str]], int]) -> int:
    """Run the four steps into `output`, or into `output-2` … when that holds an earlier run.

    say: what to do with a line of text. run: a command's words -> exit code, the command line's own `main`.
    Returns 0, or the exit code of the step that failed.
    """
    start = time.monotonic()
    output = free_folder(output)
    sample, valid = short(SAMPLE), short(SAMPLE / "valid")
    config, evaluation, prediction = short(SAMPLE / "train_args.json"), output / "evaluation", output / "prediction"

    def step(title: str, *words: str | Path) -> int:
        command = [str(word) for word in words]
        say(f"\n== {title}\n$ mask2former-dinov3 {shlex.join(command)}")
        return run(command)

    code = step(
        "1/4 what is in the data, and is anything wrong with it",
        "check-data",
        sample,
        "--image-height",
        "256",
        "--image-width",
        "256",
    )
    code = code or step(
        "2/4 train a small model from random weights, a few minutes on a CPU",
        *("train", "--config", config, "--dataset_name", sample, "--output_dir", output),
    )
    model = output / "best"
    code = code or step(
        "3/4 its COCO AP on images that it has not seen",
        *("evaluate", "--model", model, "--annotations", valid / "_annotations.coco.json", "--images", valid),
        *("--output", evaluation),
    )
    if code == 0:
        threshold, number = best_scores(evaluation / "predictions.json", valid / "_annotations.coco.json")
        code = step(
            f"4/4 pictures of its {number} best-scored instances" if number else "4/4 pictures, but it found nothing",
            *("predict", "--model", model, valid, "--output", prediction, "--threshold", f"{threshold:.4f}"),
        )
    if code == 0:
        average_precision = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))["AP"]
        say(closing(average_precision, prediction / "overlays", time.monotonic() - start))
    return code


def free_folder(output: Path) -> Path:
    """`output`, or the first of `output-2`, `output-3` … that is not there yet, so that no run is lost."""
    names = (output if number == 1 else output.with_name(f"{output.name}-{number}") for number in count(1))
    return next(path for path in names if not path.exists() or (path.is_dir() and not any(path.iterdir())))


def short(path: Path) -> Path:
    """Relative to the current folder where it lies below it."""
    return Path(os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else path


def best_scores(predictions: Path, annotations: Path) -> tuple[float, int]:
    """The threshold that draws as many instances as the annotations hold (0.5 at most), and how many those are.

    A model of a few minutes is sure of nothing, so that the usual 0.5 might draw nothing.
    """
    wanted = len(json.loads(annotations.read_text(encoding="utf-8"))["annotations"])
    results = json.loads(predictions.read_text(encoding="utf-8"))
    scores = sorted((float(result["score"]) for result in results), reverse=True)
    threshold = min([0.5, *scores[:wanted]])
    threshold = int(threshold * 10_000) / 10_000  # downwards to what the command line shows
    return threshold, sum(score >= threshold for score in scores)


def closing(average_precision: float, overlays: Path, seconds: float) -> str:
    """What was reached, where to look, what to run next."""
    return f"""
Done in {seconds / 60:.1f} minutes. AP {average_precision:.4f} (COCO mask AP, from random weights in minutes)
Pictures: {overlays}

Next, your own COCO data set:
  mask2former-dinov3 check-data DIR
with DINOv3's weights (accept their licence at https://huggingface.co/{HUB_BACKBONES["smallplus"]} first):
  mask2former-dinov3 train --dataset_name DIR --output_dir runs/first --backbone {HUB_BACKBONES["smallplus"]}"""
