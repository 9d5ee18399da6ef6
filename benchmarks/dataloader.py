"""From COCO files to training samples in one process: images per second, ours (plain, augmented) and the baseline's.

`--workers N` measures instead whether our worker processes grow over epochs.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
from torch.utils.data import DataLoader

from baseline import processor_of, read_annotations, read_sample
from mask2former_dinov3.benchmark.row_table import Row
from mask2former_dinov3.benchmark.timing import Timed, timed
from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.dataset import CocoInstanceDataset, collate
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.data.transforms import Augmentation
from mask2former_dinov3.model.configuration import IMAGENET
from measure import alone, alternate, contestants, default_dataset, name_of, options, peaks, show

SCRIPT = "dataloader.py"
EPOCHS = 4  # with --workers


def parser() -> argparse.ArgumentParser:
    found = options("The data path: images a second in one process, ours and Hugging Face's.")
    found.add_argument("--dataset", type=Path, default=default_dataset(), help="folder with _annotations.coco.json")
    found.add_argument("--size", type=int, default=1024, help="side of the square canvas, pixels")
    found.add_argument("--images", type=int, help="use only the first N images of the data set (default: all)")
    found.add_argument(
        "--workers", type=int, default=0, help="instead, measure the memory of N of our workers over epochs"
    )
    return found


def rows(argv: Sequence[str]) -> list[Row]:
    """The rows that the command line asks for."""
    args = parser().parse_args(argv)
    if args.only:
        return [alone(lambda: load(args.only, args), args)]
    if args.workers:
        return [growth_of_workers(args)]
    images = len(read_annotations(args.dataset).imgs)
    images = min(images, args.images or images)
    with contestants(SCRIPT, argv, ["baseline", "ours", "augmented"]) as works:
        rate = {name: images / seconds for name, seconds in alternate(works, args.repeat).items()}
    row = {
        "work": f"data path {args.size}, {name_of(args.dataset)}, {images} images",
        "baseline_images_per_second": rate["baseline"],
        "ours_images_per_second": rate["ours"],
        "speedup": rate["ours"] / rate["baseline"],
        "ours_augmented_images_per_second": rate["augmented"],
    }
    return [row if args.no_memory else row | peaks(SCRIPT, argv)]


def load(name: str, args: argparse.Namespace) -> Timed:
    """One pass over the images; "augmented" is ours with the training augmentation, a new epoch each time."""
    if name == "baseline":
        coco, processor = read_annotations(args.dataset), processor_of(args.size)
        image_ids = coco.getImgIds()[: args.images]

        def theirs() -> None:
            for image_id in image_ids:
                read_sample(coco, args.dataset, image_id, processor)

        return timed(theirs, "cpu")
    dataset = our_dataset(args, Augmentation() if name == "augmented" else None)
    epoch = iter(range(sys.maxsize))

    def ours() -> None:
        now = next(epoch)
        for index in range(len(dataset)):
            dataset[now, index]

    return timed(ours, "cpu")


def our_dataset(args: argparse.Namespace, augmentation: Augmentation | None) -> CocoInstanceDataset:
    data = read_coco(Split("valid", args.dataset / "_annotations.coco.json", args.dataset))
    data = dataclasses.replace(data, images=data.images[: args.images or None])
    mean, std = IMAGENET
    return CocoInstanceDataset(
        data,
        image_height=args.size,
        image_width=args.size,
        image_mean=mean,
        image_std=std,
        augmentation=augmentation,
    )


def growth_of_workers(args: argparse.Namespace) -> Row:
    """Memory that belongs to the workers alone (USS, GB), all together, after the first and after the last epoch."""
    dataset = our_dataset(args, Augmentation())
    loader = DataLoader(dataset, num_workers=args.workers, collate_fn=collate, persistent_workers=True)
    held = []
    for _ in range(EPOCHS):
        for _ in loader:
            pass
        workers = psutil.Process().children(recursive=True)
        held.append(sum(worker.memory_full_info().uss for worker in workers) / 1e9)
    return {
        "work": f"{args.workers} workers, {EPOCHS} epochs of {len(dataset)} images, {args.size}",
        "first_epoch_gb": held[0],
        "last_epoch_gb": held[-1],
        "growth_gb": held[-1] - held[0],
    }


def main(argv: Sequence[str]) -> None:
    show(rows(argv), parser().parse_args(argv).json)


if __name__ == "__main__":
    main(sys.argv[1:])
