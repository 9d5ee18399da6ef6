"""One training step (zero_grad, forward with labels, backward) of the baseline and of our model, on random images
and boxes.

Seconds are medians in alternation; peak memory is that of a process which does one step. `--growth` measures both over
the number of instances and the size of the image instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baseline import build_baseline, random_images
from growth import measure_growth, write_growth
from mask2former_dinov3.benchmark.row_table import Row
from mask2former_dinov3.benchmark.timing import Timed, timed
from mask2former_dinov3.model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.training.finetuning import add_adapters
from measure import NUM_LABELS, SIDES, against, alone, alternate, autocast, contestants, model_options, peaks, show

SCRIPT = "train_step.py"


def parser() -> argparse.ArgumentParser:
    found = model_options("One training step: seconds and peak memory, ours and Hugging Face's.")
    found.add_argument("--instances", type=int, default=10, help="of each image")
    found.add_argument("--points", type=int, default=12544, help="of matching and mask loss")
    found.add_argument("--train-backbone", action="store_true", help="default: frozen")
    found.add_argument("--frozen-blocks", type=int, default=0, help="with --train-backbone, ours only")
    found.add_argument("--lora-rank", type=int, default=0, help="adapters in the frozen backbone, ours only")
    found.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, ours only")
    found.add_argument(
        "--network",
        nargs="*",
        default=[],
        metavar="FIELD=JSON",
        help="fields of this package's network that differ from the preset",
    )
    found.add_argument("--growth", action="store_true", help="over instances (at --size) and over sizes (10 instances)")
    found.add_argument("--output", type=Path, help="JSON file for the rows of --growth")
    found.add_argument("--plot", type=Path, help="PNG file for a picture of --growth")
    found.add_argument("--cap", type=float, default=600, help="seconds that one point of --growth may take")
    return found


def rows(argv: Sequence[str]) -> list[Row]:
    """The rows that the command line asks for."""
    args = parser().parse_args(argv)
    if args.only:
        return [alone(lambda: load(args.only, args), args)]
    if args.growth:
        return measure_growth(SCRIPT, argv, args.size, args.cap)
    with contestants(SCRIPT, argv, SIDES) as works:
        seconds = alternate(works, args.repeat, warm_up_together=args.compile)
    row = {"work": describe(args)} | against(seconds, args.batch)
    return [row if args.no_memory else row | peaks(SCRIPT, argv, works if args.device == "cuda" else None)]


def describe(args: argparse.Namespace) -> str:
    """The work in words, for the row."""
    parts = [
        f"train step {args.size}, {args.preset}, batch {args.batch}, {args.instances} instances an image",
        f"{args.points} points, {'all trained' if args.train_backbone else 'backbone frozen'}",
        f"{args.dtype}, {args.device}",
    ]
    if args.frozen_blocks:
        parts.append(f"{args.frozen_blocks} blocks frozen")
    if args.lora_rank:
        parts.append(f"adapters of rank {args.lora_rank}")
    return ", ".join([*parts, *["compiled"] * args.compile, *["checkpointing"] * args.checkpointing, *args.network])


def load(side: str, args: argparse.Namespace) -> Timed:
    """Model and batch of one side, ready to make steps."""
    torch.manual_seed(0)
    config = Mask2FormerDinov3Config.preset(args.preset, num_labels=NUM_LABELS, train_num_points=args.points)
    model: Any
    if side == "baseline":
        model = build_baseline(config, args.train_backbone)
    else:
        chosen = {name: json.loads(value) for name, value in (word.split("=", 1) for word in args.network)}
        whole = {"num_labels": NUM_LABELS, "train_num_points": args.points, **chosen}
        model = Mask2FormerDinov3ForInstanceSegmentation(Mask2FormerDinov3Config.preset(args.preset, **whole))
        if args.lora_rank:
            add_adapters(model.backbone, args.lora_rank, None, ["q_proj", "v_proj"])
        elif not args.train_backbone:
            model.freeze_backbone()
        elif args.frozen_blocks:
            model.freeze_backbone(args.frozen_blocks)
        if args.checkpointing:
            model.activation_checkpointing_enable()
    model = model.to(args.device).train()
    forward = torch.compile(model) if args.compile else model
    batch = make_batch(args, torch.float32 if side == "baseline" else torch.uint8)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with autocast(args):
            loss = forward(**batch).loss
        loss.backward()

    return timed(step, args.device)


def make_batch(args: argparse.Namespace, mask_type: torch.dtype) -> dict[str, Any]:
    """Random images, boxes of a quarter by a fifth of the side as masks, random classes; the same for both sides."""
    generator = torch.Generator().manual_seed(0)
    masks = [boxes(args.instances, args.size, generator).to(args.device, mask_type) for _ in range(args.batch)]
    shape = (args.instances,)
    classes = [torch.randint(NUM_LABELS, shape, generator=generator).to(args.device) for _ in range(args.batch)]
    images = random_images(args.batch, args.size, args.device)
    return {"pixel_values": images, "mask_labels": masks, "class_labels": classes}


def boxes(count: int, size: int, generator: torch.Generator) -> Tensor:
    """(count, size, size) uint8."""
    masks = torch.zeros(count, size, size, dtype=torch.uint8)
    for mask in masks:
        top, left = torch.randint(size - size // 4, (2,), generator=generator).tolist()
        mask[top : top + size // 4, left : left + size // 5] = 1
    return masks


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    found = rows(argv)
    show(found, args.json)
    if args.growth and not args.only:
        write_growth(found, args.output, args.plot)


if __name__ == "__main__":
    main(sys.argv[1:])
