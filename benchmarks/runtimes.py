"""The verb `benchmark` on the bundled model, or on a preset with random weights, with its result in a file.

Latency of one image at each size, AP on the model's validation images.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from machine import describe_run, write_result
from mask2former_dinov3.benchmark.measure_variants import measure_variants
from mask2former_dinov3.benchmark.row_table import benchmark_table
from mask2former_dinov3.benchmark.runtime_names import RUNTIMES
from mask2former_dinov3.benchmark.variants import BenchmarkSettings
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.sample_data import SAMPLE
from measure import HERE, NUM_LABELS


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    found.add_argument("--model", type=Path, default=SAMPLE / "model", help="model folder; default: the bundled sample")
    found.add_argument("--preset", choices=("tiny", "smallplus", "large"), help="random weights, without AP")
    found.add_argument("--images", type=Path, default=SAMPLE / "valid", help="validation images of the model")
    found.add_argument("--annotations", type=Path, default=SAMPLE / "valid" / "_annotations.coco.json")
    found.add_argument("--calibration", type=Path, default=SAMPLE / "train", help="images for int8")
    found.add_argument("--sizes", type=int, nargs="*", default=[512, 1024])
    found.add_argument("--runtimes", nargs="*", choices=RUNTIMES, default=RUNTIMES)
    found.add_argument("--repeat", type=int, default=5)
    found.add_argument("--output", type=Path, default=HERE / "results", help="folder of the results")
    return found


def save_preset(preset: str, folder: Path) -> None:
    """A model folder with random weights."""
    torch.manual_seed(0)
    config = Mask2FormerDinov3Config.preset(preset, num_labels=NUM_LABELS)
    Mask2FormerDinov3ForInstanceSegmentation(config).save_pretrained(folder)
    Mask2FormerDinov3ImageProcessor().save_pretrained(folder)


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    facts = describe_run() | {"model": args.preset or args.model.resolve().parts[-2]}
    settings = BenchmarkSettings(
        canvases=tuple((size, size) for size in args.sizes),
        runtimes=tuple(args.runtimes),
        device="cpu",
        repeat=args.repeat,
        images=args.images,
        annotations=None if args.preset else args.annotations,
        calibration_images=args.calibration,
    )
    with tempfile.TemporaryDirectory() as folder:
        if args.preset:
            save_preset(args.preset, Path(folder))
        model = folder if args.preset else args.model
        rows = list(measure_variants(model, settings, lambda text: print(text, file=sys.stderr, flush=True)))
    table = benchmark_table(rows)
    parts = ["runtimes", *([args.preset] if args.preset else [])]
    write_result(args.output, parts, "Runtimes", facts, table, {"rows": rows})
    print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
