"""From logits to masks to COCO AP: images per second and AP of our path and of the baseline's.

The logits are made up from the ground truth with noise, the same for both; making them is not timed. Ours is scored as
the baseline is (mask AP alone); what `evaluate_coco` with boundary and box AP takes stands beside it. Hugging Face cuts
its masks at 384 x 384 pixels, so its AP is another one: ours is held against pycocotools on our own masks instead.
`--large` measures the memory that one large image takes from file to RLE.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from baseline import average_precision, processor_of, read_annotations, results_of
from mask2former_dinov3.benchmark.row_table import Row
from mask2former_dinov3.benchmark.timing import Timed
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco, match_masks, mean_of_defined
from mask2former_dinov3.evaluation.coco_files import read_ground_truth, read_results
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.inference.postprocess import post_process
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from measure import (
    SIDES,
    alone,
    alternate,
    contestants,
    default_dataset,
    in_own_process,
    name_of,
    options,
    peaks,
    show,
)

SCRIPT = "evaluation.py"


def parser() -> argparse.ArgumentParser:
    found = options("Post-processing and AP: images a second, ours and Hugging Face's.")
    found.add_argument("--dataset", type=Path, default=default_dataset(), help="folder with _annotations.coco.json")
    found.add_argument("--size", type=int, default=1024, help="side of the square canvas, pixels")
    found.add_argument("--images", type=int, help="use only the first N images of the data set (default: all)")
    found.add_argument("--detections", type=int, default=100, help="queries of the simulated model, all kept")
    found.add_argument("--large", action="store_true", help="memory of one large image through a real model instead")
    found.add_argument("--large-size", type=int, nargs=2, default=(3000, 4000), metavar=("HEIGHT", "WIDTH"))
    found.add_argument("--preset", choices=("tiny", "smallplus", "large"), default="smallplus", help="of --large")
    found.add_argument("--queries", type=int, default=200, help="of --large")
    return found


def rows(argv: Sequence[str]) -> list[Row]:
    """The rows that the command line asks for."""
    args = parser().parse_args(argv)
    if args.large:
        return [large_image(argv, args)]
    if args.only:
        return [alone(lambda: Contender(args.only, args), args)]
    contenders = {side: Contender(side, args) for side in SIDES}
    ours = contenders["ours"]
    images = len(ours.image_ids)
    with contestants(SCRIPT, argv, SIDES) as works:
        rate = {side: images / seconds for side, seconds in alternate(works, args.repeat).items()}
    for contender in contenders.values():
        contender()  # for its AP only
    start = time.perf_counter()
    whole = evaluate_coco(ours.coco.dataset, ours.results, max_detections=args.detections, image_ids=ours.image_ids)
    whole_seconds = time.perf_counter() - start
    reference = average_precision(ours.coco, ours.results, ours.image_ids, args.detections)
    row = {
        "work": f"post-process and AP {args.size}, {name_of(args.dataset)}, {images} images, "
        f"{args.detections} detections an image",
        **{f"{side}_images_per_second": rate[side] for side in SIDES},
        "speedup": rate["ours"] / rate["baseline"],
        **{f"{side}_ap": contenders[side].ap for side in SIDES},
        "ours_ap_by_pycocotools": reference,
        "ap_difference": abs(ours.ap - reference),
        "evaluate_coco_seconds": whole_seconds,
        "ours_boundary_ap": whole["boundary_AP"],
        "ours_box_ap": whole["box_AP"],
    }
    return [row if args.no_memory else row | peaks(SCRIPT, argv)]


class Contender:
    """One side's way from logits to AP; a call is one pass over the images and returns the seconds it spent."""

    def __init__(self, side: str, args: argparse.Namespace) -> None:
        self.side, self.args = side, args
        self.coco = read_annotations(args.dataset)
        self.image_ids: list[int] = self.coco.getImgIds()[: args.images]
        self.categories = [(int(one["id"]), str(one["name"])) for one in self.coco.dataset["categories"]]
        self.processor = processor_of(args.size)
        self.results: list[dict[str, Any]] = []
        self.ap = -1.0

    def __call__(self) -> float:
        self.results = []
        spent = 0.0
        for image_id, size, outputs in made_up_outputs(self.coco, self.image_ids, self.categories, self.args):
            start = time.perf_counter()
            self.results += self.found(image_id, size, outputs)
            spent += time.perf_counter() - start
        start = time.perf_counter()
        self.ap = self.score()
        return spent + time.perf_counter() - start

    def found(self, image_id: int, size: tuple[int, int], outputs: Any) -> list[dict[str, Any]]:
        """COCO results of an image of `size` (height, width)."""
        if self.side == "baseline":
            return results_of(self.processor, outputs, image_id, size, [number for number, _ in self.categories])
        instances = post_process(
            outputs.class_queries_logits,
            outputs.masks_queries_logits,
            [size],
            settings=InferenceSettings(threshold=0.0, max_detections=self.args.detections),
            categories=tuple(self.categories),
        )
        return instances[0].to_coco(image_id)

    def score(self) -> float:
        """Mask AP of the results; reading the annotation file is not part of it on either side."""
        limit = self.args.detections
        if self.side == "baseline":
            return average_precision(self.coco, self.results, self.image_ids, limit)
        truth = read_ground_truth(self.coco.dataset, self.image_ids)
        limits = sorted({1, min(10, limit), limit})
        return mean_of_defined(match_masks(truth, read_results(self.results, truth), "segm", limits)[0][:, :, :, 0])


def made_up_outputs(
    coco: Any, image_ids: list[int], categories: list[tuple[int, str]], args: argparse.Namespace
) -> Iterator[tuple[int, tuple[int, int], Any]]:
    """(image id, (height, width), outputs) of a model that finds random instances of an image, with noise.

    masks_queries_logits (1, D, size / 4, size / 4), class_queries_logits (1, D, K+1); the same in every pass.
    """
    generator = torch.Generator().manual_seed(0)
    labels = {number: label for label, (number, _) in enumerate(categories)}
    small = (args.size // 4, args.size // 4)
    for image_id in image_ids:
        record = coco.imgs[image_id]
        annotations = coco.imgToAnns[image_id] or [None]
        picked = torch.randint(len(annotations), (args.detections,), generator=generator).tolist()
        # One mask at a time, so that these logits do not decide the peak of memory.
        logits = {index: clean_logits(coco, annotations[index], small) for index in set(picked)}
        masks = torch.stack([logits[index] for index in picked])[None]
        classes: Tensor = torch.randn(1, args.detections, len(categories) + 1, generator=generator) * 3
        if len(categories) > 1 and annotations[0] is not None:
            truth = [labels[annotations[index]["category_id"]] for index in picked]
            classes[0, torch.arange(args.detections), truth] += 3
        outputs = SimpleNamespace(
            class_queries_logits=classes,
            masks_queries_logits=masks + torch.randn(masks.shape, generator=generator),
        )
        yield image_id, (int(record["height"]), int(record["width"])), outputs


def clean_logits(coco: Any, annotation: dict[str, Any] | None, size: tuple[int, int]) -> Tensor:
    """The mask of an annotation squeezed to `size` as logits, 4 inside and -4 outside; all -4 without one."""
    if annotation is None:
        return torch.full(size, -4.0)
    mask = torch.from_numpy(coco.annToMask(annotation))[None, None].float() * 8 - 4
    return F.interpolate(mask, size, mode="bilinear")[0, 0]


def large_image(argv: Sequence[str], args: argparse.Namespace) -> Row:
    """Memory above the loaded model (GB) that the way of one image from pixels to RLE takes, in a process of its own.

    The baseline has no row: its binary maps of 200 queries alone are two float32 copies of 9.6 GB.
    """
    if args.only != "ours":
        height, width = args.large_size
        work = f"one image {width}x{height} through {args.preset} {args.size}, {args.queries} queries, to RLE"
        found = in_own_process(SCRIPT, [*argv, "--only", "ours", "--repeat", "0"])
        return {"work": work, "ours_peak_gb": found["peak_gb"], "ours_above_loaded_gb": found["above_loaded_gb"]}

    def load() -> Timed:
        torch.manual_seed(0)
        config = Mask2FormerDinov3Config.preset(args.preset, num_queries=args.queries)
        canvas = {"height": args.size, "width": args.size}
        predictor = Predictor(
            Mask2FormerDinov3ForInstanceSegmentation(config).to(args.device), Mask2FormerDinov3ImageProcessor(canvas)
        )

        def once() -> float:
            start = time.perf_counter()
            image = np.random.default_rng(0).integers(0, 256, (*args.large_size, 3), dtype=np.uint8)
            predictor(image, threshold=0.0, max_detections=args.queries).to_coco(1)
            return time.perf_counter() - start

        return once

    return alone(load, args)


def main(argv: Sequence[str]) -> None:
    show(rows(argv), parser().parse_args(argv).json)


if __name__ == "__main__":
    main(sys.argv[1:])
