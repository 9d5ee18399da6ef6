"""Seconds of one forward pass: the baseline, our model, and the ViT alone, which is the lower bound of both.

Seconds are medians in alternation. `head_share` is the time of our head on ready feature maps, as a share of the whole
model's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from baseline import build_baseline, build_eomt, random_images
from mask2former_dinov3.benchmark.row_table import Row
from mask2former_dinov3.benchmark.timing import Timed, timed
from mask2former_dinov3.model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from measure import NUM_LABELS, SIDES, against, alone, alternate, autocast, contestants, model_options, peaks, show

SCRIPT = "inference.py"


def parser() -> argparse.ArgumentParser:
    found = model_options("One forward pass: ours, Hugging Face's, and the ViT alone.")
    found.add_argument("--eomt", action="store_true", help="transformers' EoMT with the same ViT as well")
    return found


def rows(argv: Sequence[str]) -> list[Row]:
    """The rows that the command line asks for."""
    args = parser().parse_args(argv)
    if args.only:
        return [alone(lambda: load(args)[args.only](), args)]
    names = ["baseline", "ours", "floor", "head", *["eomt"] * args.eomt]
    with contestants(SCRIPT, argv, names) as works:
        seconds = alternate(works, args.repeat, warm_up_together=args.compile)
    row: Row = {"work": describe(args)} | against(seconds, args.batch)
    row |= {"floor_seconds": seconds["floor"], "head_seconds": seconds["head"]}
    row |= {f"{side}_floors": seconds[side] / seconds["floor"] for side in SIDES}
    row |= {"head_share": seconds["head"] / seconds["ours"]}
    if args.eomt:
        row |= {"eomt_seconds": seconds["eomt"], "eomt_images_per_second": args.batch / seconds["eomt"]}
        row |= {"eomt_speedup": seconds["eomt"] / seconds["ours"]}
    return [row if args.no_memory else row | peaks(SCRIPT, argv, works if args.device == "cuda" else None)]


def describe(args: argparse.Namespace) -> str:
    """The work in words, for the row."""
    parts = [f"inference {args.size}", args.preset, f"batch {args.batch}", args.dtype, args.device]
    return ", ".join([*parts, *["compiled"] * args.compile])


def load(args: argparse.Namespace) -> dict[str, Callable[[], Timed]]:
    """A function for each contender that builds it; ours, its ViT and its head are parts of one model."""
    config = Mask2FormerDinov3Config.preset(args.preset, num_labels=NUM_LABELS)
    images = random_images(args.batch, args.size, args.device)
    built: list[Any] = []

    def ours() -> Any:
        if not built:
            built.append(ready(Mask2FormerDinov3ForInstanceSegmentation(config), args))
        return built[0]

    def head() -> Timed:
        with torch.inference_mode(), autocast(args):
            maps = ours().feature_maps(images)
        return forward(ours().head, maps, args)

    return {
        "baseline": lambda: forward(ready(build_baseline(config), args), images, args),
        "ours": lambda: forward(ours(), images, args),
        "floor": lambda: forward(ours().backbone, images, args),
        "head": head,
        "eomt": lambda: forward(ready(build_eomt(config, args.size), args), images, args),
    }


def ready(model: Any, args: argparse.Namespace) -> Any:
    return model.to(args.device).eval()


def forward(model: Any, inputs: Any, args: argparse.Namespace) -> Timed:
    """A forward pass of `model` on `inputs`."""
    run = torch.compile(model) if args.compile else model

    def once() -> None:
        with torch.inference_mode(), autocast(args):
            run(inputs)

    return timed(once, args.device)


def main(argv: Sequence[str]) -> None:
    show(rows(argv), parser().parse_args(argv).json)


if __name__ == "__main__":
    main(sys.argv[1:])
