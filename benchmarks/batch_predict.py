"""Images per second of `batch-predict` on a Ray cluster of this machine, beside the plain loop of `predict`.

The images are copied under other names until there are enough. `images_per_second` leaves the start out: the loop's
clock starts once the model is loaded, the job's at its first complete shard and stops at its last. `seconds` includes
the start of Ray. The loop uses torch's default number of threads, an actor as many as it reserves CPUs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from machine import describe_run, write_result
from mask2former_dinov3.allocator import keep_freed_memory
from mask2former_dinov3.benchmark.row_table import Row, markdown
from mask2former_dinov3.cluster.job import batch_predict
from mask2former_dinov3.data.file_kinds import IMAGE_SUFFIXES
from mask2former_dinov3.inference.files.predict_files import predict_files
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.inference.settings import InferenceSettings
from measure import name_of, sample_dataset, show

SHARDS = 20
HEAD = ("work", "images", "seconds", "images_per_second", "of_the_loop")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description="batch-predict beside the plain loop.", allow_abbrev=False)
    found.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    found.add_argument(
        "--model", default=str(sample_dataset().parent / "model"), help="model folder (default: the bundled sample)"
    )
    found.add_argument(
        "--images", type=Path, default=sample_dataset(), help="folder (default: the sample's validation images)"
    )
    found.add_argument("--count", type=int, default=400, help="number of images (default: 400)")
    found.add_argument(
        "--actors", type=int, nargs="+", default=[1, 2], help="numbers of actors, one row each (default: 1 2)"
    )
    found.add_argument("--batch-size", type=int, default=1)
    found.add_argument("--json", action="store_true", help="one JSON object per row instead of a table")
    found.add_argument("--output", type=Path, help="also write Markdown and JSON into this folder, such as results")
    return found


def rows(argv: Sequence[str]) -> list[Row]:
    """One row for the loop, then one for the job with each number of actors."""
    args = parser().parse_args(argv)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        copy_images(args.images, images, args.count)
        found = [loop(args, images, Path(folder, "loop"))]
        for actors in args.actors:
            found.append(job(args, images, Path(folder, f"job{actors}"), actors))
    for row in found:
        row["of_the_loop"] = row["images_per_second"] / found[0]["images_per_second"]
    return found


def copy_images(source: Path, target: Path, count: int) -> None:
    """Fill a new folder with `count` image files, repeating those of `source`."""
    files = sorted(file for file in source.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    target.mkdir()
    for number in range(count):
        file = files[number % len(files)]
        shutil.copy(file, target / f"{number:06d}{file.suffix}")


def loop(args: argparse.Namespace, images: Path, output: Path) -> Row:
    predictor = Predictor.from_pretrained(args.model, args.device)
    predictor([next(images.iterdir())] * args.batch_size, batch_size=args.batch_size)  # warm-up
    start = time.perf_counter()
    summary = predict_files(
        predictor, [images], output, settings=InferenceSettings(batch_size=args.batch_size), save=("coco",)
    )
    seconds = time.perf_counter() - start
    return {
        "work": f"predict, {args.device}",
        "images": summary.images,
        "seconds": seconds,
        "images_per_second": summary.images / seconds,
    }


def job(args: argparse.Namespace, images: Path, output: Path, actors: int) -> Row:
    shard = max(args.count // SHARDS, 1)
    start = time.perf_counter()
    summary = batch_predict(
        args.model,
        [str(images)],
        str(output),
        device=args.device,
        actors=actors,
        settings=InferenceSettings(batch_size=args.batch_size),
        shard_size=shard,
    )
    seconds = time.perf_counter() - start
    finished = sorted(file.stat().st_mtime for file in (output / "images").iterdir())
    return {
        "work": f"batch-predict, {args.device}, actors: {actors}",
        "images": summary.images,
        "seconds": seconds,
        "images_per_second": (summary.images - shard) / (finished[-1] - finished[0]),
    }


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    facts = describe_run(args.device) | {"data set": name_of(args.images), "batch size": args.batch_size}
    found = rows(argv)
    if args.output:
        table = markdown([list(HEAD), *([row["work"], *(f"{row[key]:.4g}" for key in HEAD[1:])] for row in found)])
        write_result(args.output, ["batch_predict"], "batch-predict", facts, table, {"rows": found})
    show(found, args.json)


if __name__ == "__main__":
    main(sys.argv[1:])
