"""Prediction in tiles: AP of mosaics made of held-back images, seams on and off objects, and the memory of a large one.

A mosaic is made of square images (cells), so its truth is theirs, and prediction image by image is what tiles are
compared with. AP is COCO's over the cells: a result belongs to the cell that its middle lies in, seen with a margin.

P pixels: side of a cell.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from machine import describe_machine
from mask2former_dinov3.allocator import keep_freed_memory
from mask2former_dinov3.benchmark.row_table import Row
from mask2former_dinov3.benchmark.timing import memory_peak
from mask2former_dinov3.data.images import read_image
from mask2former_dinov3.data.rle import run_lengths
from mask2former_dinov3.data.segmentation import parse_segmentation, polygons_to_runs
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.inference.files.predict_files import predict_files
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.inference.tiles.grid import Grid
from mask2former_dinov3.inference.tiles.merging import merge_rows, pieces_of
from mask2former_dinov3.inference.tiles.part_reader import ImageReader
from mask2former_dinov3.inference.tiles.runs import encode_runs, join_runs
from mask2former_dinov3.instances import Instances, encode_masks
from measure import default_dataset, name_of, show

MODEL = Path(__file__).parents[1] / "src" / "mask2former_dinov3" / "sample" / "model"
MARGIN = 32  # pixels around a cell that belong to its image
MOST_PER_CELL = 300  # max_detections of the AP
MOST_SCORED = 400  # cells of the large mosaic, evenly spread: scoring all would take longer than predicting


class Cells(NamedTuple):
    """Square images of one side, and the COCO annotations of each, and the categories."""

    side: int
    pixels: list[NDArray[np.uint8]]
    annotations: list[list[dict[str, Any]]]
    categories: list[dict[str, Any]]


def read_cells(folder: Path) -> Cells:
    """The images of the most common square size in a folder with `_annotations.coco.json`."""
    coco = json.loads((folder / "_annotations.coco.json").read_text(encoding="utf-8"))
    square = [image for image in coco["images"] if image["width"] == image["height"]]
    side = Counter(image["width"] for image in square).most_common(1)[0][0]
    chosen = [image for image in square if image["width"] == side]
    return Cells(
        side,
        [read_image(folder / image["file_name"]) for image in chosen],
        [[one for one in coco["annotations"] if one["image_id"] == image["id"]] for image in chosen],
        coco["categories"],
    )


def mosaic_row(cells: Cells, row: int, count: int) -> NDArray[np.uint8]:
    """(P, count * P, 3): one row of a mosaic `count` cells wide; the cells repeat."""
    return np.hstack([cells.pixels[(row * count + column) % len(cells.pixels)] for column in range(count)])


def truth_of(cells: Cells, count: int) -> dict[str, Any]:
    """COCO annotations of count x count cells, each an image of its own with its margin."""
    size = cells.side + 2 * MARGIN
    moved = [[one | {"segmentation": with_margin(one, cells.side)} for one in own] for own in cells.annotations]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for cell in range(count * count):
        images.append({"id": cell, "height": size, "width": size})
        for one in moved[cell % len(moved)]:
            annotations.append(one | {"id": len(annotations) + 1, "image_id": cell})
    return {"images": images, "annotations": annotations, "categories": cells.categories}


def with_margin(annotation: dict[str, Any], side: int) -> dict[str, Any]:
    """The mask of an annotation in its cell with the margin, as RLE."""
    found = parse_segmentation(annotation["segmentation"], side, side)
    runs = polygons_to_runs(found, side, side) if isinstance(found, list) else run_lengths(found["counts"])
    canvas = np.zeros((1, side + 2 * MARGIN, side + 2 * MARGIN), dtype=bool)
    canvas[0, MARGIN : MARGIN + side, MARGIN : MARGIN + side] = (
        np.repeat(np.arange(len(runs)) % 2, runs).reshape((side, side), order="F") > 0
    )
    return dict(encode_masks(canvas)[0])


def results_of(found: Instances, cells: Cells, count: int, border: int) -> list[dict[str, Any]]:
    """The instances of a mosaic as COCO results of its cells, the first of which begins at (border, border)."""
    size = cells.side + 2 * MARGIN
    results = []
    for index, result in enumerate(found.to_coco(0)):
        pixels, top, left = found.window(index)
        rows, columns = pixels.shape
        row, column = (
            min(max((start + extent // 2 - border) // cells.side, 0), count - 1)
            for start, extent in ((top, rows), (left, columns))
        )
        y, x = top - border - row * cells.side + MARGIN, left - border - column * cells.side + MARGIN
        canvas = np.zeros((1, size, size), dtype=bool)
        inside = canvas[0, max(y, 0) : max(y + rows, 0), max(x, 0) : max(x + columns, 0)]
        inside[:] = pixels[max(-y, 0) :, max(-x, 0) :][: inside.shape[0], : inside.shape[1]]
        if inside.any():
            (rle,) = encode_masks(canvas)
            results.append(result | {"image_id": row * count + column, "segmentation": rle})
    return results


def predict_merged(predictor: Predictor, mosaic: NDArray[np.uint8], grid: Grid, args: argparse.Namespace) -> Instances:
    """Instances of the mosaic, merged over its tiles as `Predictor` does it."""
    rows = predictor.predict_rows(ImageReader.of(mosaic), grid, settings_of(args))
    return merge_rows(rows, grid, predictor.categories)


def predict_unmerged(
    predictor: Predictor, mosaic: NDArray[np.uint8], grid: Grid, args: argparse.Namespace
) -> Instances:
    """Instances of all tiles, without merging."""
    rows = predictor.predict_rows(ImageReader.of(mosaic), grid, settings_of(args))
    found = [
        piece
        for index, row in enumerate(rows)
        for tile, instances in zip(grid.row(index), row, strict=True)
        for piece in pieces_of(instances, tile, grid)
    ]
    found.sort(key=lambda piece: -piece.score)
    rles = encode_runs([join_runs([piece.runs]) for piece in found], grid.height, grid.width)
    labels, scores = np.array([piece.label for piece in found]), np.array([piece.score for piece in found])
    return Instances(grid.height, grid.width, tuple(rles), labels, scores, predictor.categories)


def settings_of(args: argparse.Namespace) -> InferenceSettings:
    return InferenceSettings(threshold=args.threshold, max_detections=100, batch_size=args.batch_size)


def ap_rows(args: argparse.Namespace) -> list[Row]:
    """AP of one mosaic: image by image, and in tiles whose seams lie between the cells or run through them."""
    cells = read_cells(args.data)
    count = args.cells or math.isqrt(len(cells.pixels))
    predictor = Predictor.from_pretrained(args.model, args.device)
    truth = truth_of(cells, count)
    plain = np.vstack([mosaic_row(cells, row, count) for row in range(count)])
    half = cells.side // 2
    shifted = np.pad(plain, ((half, half), (half, half), (0, 0)))  # so that tiles end in the middle of cells
    side = plain.shape[0]

    def row(name: str, mosaic: NDArray[np.uint8], border: int, overlap: float, way: Any) -> Row:
        start = time.perf_counter()
        grid = Grid.of(mosaic.shape[0], mosaic.shape[1], cells.side, overlap)
        found = way(predictor, mosaic, grid, args)
        seconds = time.perf_counter() - start
        results = results_of(found, cells, count, border)
        scores = dict(evaluate_coco(truth, results, max_detections=MOST_PER_CELL))
        names = ("AP", "AP50", "AP75")
        return (
            {"prediction": name}
            | {key: scores[key] for key in names}
            | {
                "results": len(results),
                "seconds": seconds,
            }
        )

    found = [row("image by image: tiles are the cells, seams off objects", plain, 0, 0.0, predict_merged)]
    found.append(row("seams on objects, overlap 0", shifted, half, 0.0, predict_merged))
    for overlap in args.overlaps:
        found.append(row(f"seams on objects, overlap {overlap}, not merged", shifted, half, overlap, predict_unmerged))
        found.append(row(f"seams on objects, overlap {overlap}, merged", shifted, half, overlap, predict_merged))
    mosaic_name = f"{count} x {count} cells of {name_of(args.data)}, {side} pixels a side"
    return [{"mosaic": mosaic_name} | one for one in found]


def write_mosaic(path: Path, cells: Cells, count: int) -> None:
    """A tiled TIFF of count x count cells, written row by row."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    side = count * cells.side
    options = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "photometric": "RGB"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", **options
        ) as file:
            for row in range(count):
                bands = np.moveaxis(mosaic_row(cells, row, count), -1, 0)
                file.write(bands, window=((row * cells.side, (row + 1) * cells.side), (0, side)))


def large_row(args: argparse.Namespace) -> Row:
    """`predict` on a large mosaic, in a process of its own: memory above the loaded model, seconds, AP."""
    cells = read_cells(args.data)
    count = math.ceil(args.size / cells.side)
    with tempfile.TemporaryDirectory() as folder:
        write_mosaic(Path(folder) / "mosaic.tif", cells, count)
        words = [
            sys.executable,
            __file__,
            "--model",
            str(args.model),
            "--device",
            args.device,
            "--tile",
            str(args.tile),
        ]
        words += ["--batch-size", str(args.batch_size), "--threshold", str(args.threshold), "--measure", folder]
        row: Row = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
        stored = json.loads((Path(folder) / "out" / "predictions.json").read_text(encoding="utf-8"))["annotations"]
    side = count * cells.side
    row = {"large": f"{side} x {side}, tile {args.tile}, batch {args.batch_size}"} | row
    found = Instances(
        side,
        side,
        tuple(one["segmentation"] for one in stored),
        np.zeros(len(stored), dtype=np.int64),
        np.array([one["score"] for one in stored]),
        ((cells.categories[0]["id"], cells.categories[0]["name"]),),
    )
    scored = set(range(0, count * count, max(1, count * count // MOST_SCORED)))
    results = [one for one in results_of(found, cells, count, 0) if one["image_id"] in scored]
    scores = evaluate_coco(truth_of(cells, count), results, max_detections=MOST_PER_CELL, image_ids=scored)
    return row | {"scored_cells": len(scored)} | {key: scores[key] for key in ("AP", "AP50", "AP75")}


def measure(args: argparse.Namespace) -> Row:
    """Predict the mosaic of `large_row` and measure it, in the process that it starts."""
    keep_freed_memory()
    predictor = Predictor.from_pretrained(args.model, args.device)
    loaded = memory_peak("cpu")
    start = time.perf_counter()
    summary = predict_files(
        predictor,
        [args.measure / "mosaic.tif"],
        args.measure / "out",
        settings=replace(settings_of(args), tile=args.tile),
        save=("overlays", "coco"),
    )
    seconds = time.perf_counter() - start
    assert not summary.failed, summary.failed
    peak = memory_peak("cpu")
    gigabytes = {"loaded_gb": loaded / 1e9, "peak_gb": peak / 1e9, "above_loaded_gb": (peak - loaded) / 1e9}
    return {"instances": summary.detections, "seconds": seconds} | gigabytes


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    found.add_argument("--model", type=Path, default=MODEL, help="default: the bundled sample")
    found.add_argument("--data", type=Path, default=default_dataset(), help="folder with _annotations.coco.json")
    found.add_argument("--device", default="cpu")
    found.add_argument("--threshold", type=float, default=0.05, help="minimum score of a result")
    found.add_argument("--batch-size", type=int, default=2, help="tiles per forward pass")
    found.add_argument("--cells", type=int, help="cells along a side of the AP's mosaic; default: as many as there are")
    found.add_argument("--overlaps", type=float, nargs="+", default=[0.2], metavar="F")
    found.add_argument("--size", type=int, default=20_000, help="side of the large mosaic, pixels; 0: without it")
    found.add_argument("--tile", type=int, default=320, help="side of a tile of the large mosaic, pixels")
    found.add_argument("--no-ap", action="store_true", help="the large mosaic only")
    found.add_argument("--quick", action="store_true", help="smoke test: 2 x 2 cells, 1000 pixels")
    found.add_argument("--json", action="store_true", help="one JSON object per row instead of a table")
    found.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return found


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    if args.measure:
        print(json.dumps(measure(args)))
        return
    if args.quick:
        args.cells, args.size = 2, min(args.size, 1000)
    if not args.json:
        print("\n".join(f"{name}: {value}" for name, value in describe_machine(args.device).items()) + "\n")
    if not args.no_ap:
        show(ap_rows(args), args.json)
    if args.size:
        show([large_row(args)], args.json)


if __name__ == "__main__":
    main(sys.argv[1:])
