"""The whole path on the bundled sample: check, evaluate, train, evaluate, predict, each step a command of its own."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from ..atomic_files import check_writable
from ..sample_data import SAMPLE


def demo(output: Path, *, say: Callable[[str], None], run: Callable[[list[str]], int]) -> int:
    """Run the five steps and write to `output`, or to `output-2` … if an earlier run is there.

    say: shows a text. run: the words of a command -> its exit code; the command line's own `main`.
    Returns 0, or the exit code of the step that failed. Raises CheckpointError for a folder that cannot be written.
    """
    start = time.monotonic()
    output = find_free_folder(output)
    check_writable(output)
    sample, valid = shorten(SAMPLE), shorten(SAMPLE / "valid")
    config, shipped = shorten(SAMPLE / "train_args.json"), shorten(SAMPLE / "model")
    truth = ("--annotations", valid / "_annotations.coco.json", "--images", valid)
    before, after, prediction = output / "before", output / "evaluation", output / "prediction"

    def step(title: str, *words: str | Path) -> int:
        command = [str(word) for word in words]
        say(f"\n== {title}\n$ mask2former-dinov3 {shlex.join(command)}")
        return run(command)

    code = step(
        "1/5 check the data",
        *("check-data", sample, "--image-scale", "native", "--image-height", "256", "--image-width", "256"),
    )
    code = code or step(
        "2/5 COCO AP of the bundled model, which was trained without these images",
        *("evaluate", "--model", shipped, *truth, "--output", before),
    )
    code = code or step(
        "3/5 train that model further on 40 images, those with the largest nuclei; a few minutes on a CPU",
        *("train", "--config", config, "--head", shipped, "--dataset-name", sample, "--output-dir", output),
    )
    model = output / "best"
    code = code or step(
        "4/5 COCO AP of the trained model on the images of step 2",
        *("evaluate", "--model", model, *truth, "--output", after),
    )
    if code == 0:
        threshold, number = choose_threshold(after / "predictions.json", valid / "_annotations.coco.json")
        code = step(
            f"5/5 draw the instances scored {threshold:.2f} or more, without copies"
            if number
            else "5/5 draw the images; no instance was found",
            *("predict", "--model", model, valid, "--output", prediction, "--threshold", f"{threshold:.4f}"),
        )
    if code == 0:
        first, last = (json.loads((x / "metrics.json").read_text(encoding="utf-8"))["AP"] for x in (before, after))
        say(summarise(first, last, prediction / "overlays", time.monotonic() - start))
    return code


def find_free_folder(output: Path) -> Path:
    """`output`, or the first of `output-2`, `output-3` … that is missing or empty, so that no run is overwritten."""
    names = (output if number == 1 else output.with_name(f"{output.name}-{number}") for number in count(1))
    return next(path for path in names if not path.exists() or (path.is_dir() and not any(path.iterdir())))


def shorten(path: Path) -> Path:
    """The path relative to the current folder, if it lies in it."""
    return Path(os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else path


def choose_threshold(predictions: Path, annotations: Path) -> tuple[float, int]:
    """The threshold (at most 0.5) at which as many instances are drawn as are annotated, and how many these are.

    After a few minutes of training the scores may all be below the usual 0.5, which would draw nothing.
    """
    wanted = len(json.loads(annotations.read_text(encoding="utf-8"))["annotations"])
    results = json.loads(predictions.read_text(encoding="utf-8"))
    scores = sorted((float(result["score"]) for result in results), reverse=True)
    threshold = min([0.5, *scores[:wanted]])
    threshold = int(threshold * 10_000) / 10_000  # rounded down to the digits that the command shows
    return threshold, sum(score >= threshold for score in scores)


def summarise(before: float, after: float, overlays: Path, seconds: float) -> str:
    """The result, where the pictures are, and what to run next."""
    return f"""
Done in {seconds / 60:.1f} minutes. COCO mask AP {before:.4f} before, {after:.4f} after training on 40 images
Pictures: {overlays}

Next, check your own data, then train on them:
  mask2former-dinov3 check-data DIR
  mask2former-dinov3 train --dataset-name DIR --output-dir runs/first"""
