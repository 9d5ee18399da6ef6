"""The whole path on the bundled sample: check, evaluate, train, evaluate, predict; each step is a command for users."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from ..config.presets import HUB_BACKBONES
from ..sample_data import SAMPLE


def demo(output: Path, *, say: Callable[[str], None], run: Callable[[list[str]], int]) -> int:
    """Run the five steps into `output`, or into `output-2` … when that holds an earlier run.

    say: what to do with a line of text. run: a command's words -> exit code, the command line's own `main`.
    Returns 0, or the exit code of the step that failed.
    """
    start = time.monotonic()
    output = free_folder(output)
    sample, valid = short(SAMPLE), short(SAMPLE / "valid")
    config, shipped = short(SAMPLE / "train_args.json"), short(SAMPLE / "model")
    truth = ("--annotations", valid / "_annotations.coco.json", "--images", valid)
    before, after, prediction = output / "before", output / "evaluation", output / "prediction"

    def step(title: str, *words: str | Path) -> int:
        command = [str(word) for word in words]
        say(f"\n== {title}\n$ mask2former-dinov3 {shlex.join(command)}")
        return run(command)

    code = step(
        "1/5 what is in the data, and is anything wrong with it",
        *("check-data", sample, "--image-height", "384", "--image-width", "384"),
    )
    code = code or step(
        "2/5 COCO AP of the bundled model, which has not seen these images, nor any purple-stained tissue",
        *("evaluate", "--model", shipped, *truth, "--output", before),
    )
    code = code or step(
        "3/5 train it on: 40 images, 8 of them of the new kind, a few minutes on a CPU",
        *("train", "--config", config, "--head", shipped, "--dataset_name", sample, "--output_dir", output),
    )
    model = output / "best"
    code = code or step(
        "4/5 its COCO AP on the same images",
        *("evaluate", "--model", model, *truth, "--output", after),
    )
    if code == 0:
        threshold, number = best_scores(after / "predictions.json", valid / "_annotations.coco.json")
        code = step(
            f"5/5 pictures of its {number} best-scored instances" if number else "5/5 pictures, but it found nothing",
            *("predict", "--model", model, valid, "--output", prediction, "--threshold", f"{threshold:.4f}"),
        )
    if code == 0:
        first, last = (json.loads((x / "metrics.json").read_text(encoding="utf-8"))["AP"] for x in (before, after))
        say(closing(first, last, prediction / "overlays", time.monotonic() - start))
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

    A model of a few minutes may be sure of little, so that the usual 0.5 might draw nothing.
    """
    wanted = len(json.loads(annotations.read_text(encoding="utf-8"))["annotations"])
    results = json.loads(predictions.read_text(encoding="utf-8"))
    scores = sorted((float(result["score"]) for result in results), reverse=True)
    threshold = min([0.5, *scores[:wanted]])
    threshold = int(threshold * 10_000) / 10_000  # downwards to what the command line shows
    return threshold, sum(score >= threshold for score in scores)


def closing(before: float, after: float, overlays: Path, seconds: float) -> str:
    """What was reached, where to look, what to run next."""
    return f"""
Done in {seconds / 60:.1f} minutes. COCO mask AP {before:.4f} before, {after:.4f} after training on 40 images
Pictures: {overlays}

Next, your own COCO data set:
  mask2former-dinov3 check-data DIR
with DINOv3's weights (accept their licence at https://huggingface.co/{HUB_BACKBONES["smallplus"]} first):
  mask2former-dinov3 train --dataset_name DIR --output_dir runs/first --backbone {HUB_BACKBONES["smallplus"]}"""
