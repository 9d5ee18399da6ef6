"""Score a model folder on `nuclei/valid` by kind of image: COCO AP, and StarDist's metric on the fluorescence images.

Half of the images are StarDist's training subset of BBBC038 (fluorescence), the others tissue and bright field, which
it leaves out. The score threshold of StarDist's metric is chosen on a sixth of the fluorescence images of `train`.

    nuclei.py runs/x/best --data nuclei --output nuclei.json

With --write, it makes a data set of the fluorescence images of `train` instead, on which recipes are compared: every
sixth image is for validation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mask2former_dinov3.allocator import keep_freed_memory
from mask2former_dinov3.data.coco import CocoData, read_coco
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.evaluation.coco_ap import match_masks, mean_of_defined
from mask2former_dinov3.evaluation.coco_files import read_ground_truth, read_results
from mask2former_dinov3.evaluation.evaluate import predict_split
from mask2former_dinov3.inference.predictor import load_network
from stardist_metric import choose_threshold, score_stardist

COLOURED = 25  # mean difference of the largest and the smallest channel, 0..255: stained tissue
BRIGHT = 110  # median brightness, 0..255: bright field
THRESHOLD_EVERY = 6


def kind_of(path: Path) -> str:
    """`fluorescence`, `tissue` or `bright field`, by colour and brightness."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(np.float32)
    if (pixels.max(2) - pixels.min(2)).mean() > COLOURED:
        return "tissue"
    return "bright field" if np.median(pixels) > BRIGHT else "fluorescence"


def split_by_kind(data: CocoData) -> dict[str, CocoData]:
    """The images of each kind."""
    places: dict[str, list[int]] = {}
    for place, record in enumerate(data.images):
        places.setdefault(kind_of(Path(record.path)), []).append(place)
    return {kind: dataclasses.replace(data, images=data.images.take(found)) for kind, found in places.items()}


def group_images(data: CocoData) -> dict[str, list[int]]:
    """Group -> ids of its images: the kinds, and of the fluorescence images each size with at least two images."""
    groups = {kind: [record.id for record in part.images] for kind, part in split_by_kind(data).items()}
    sizes: dict[str, list[int]] = {}
    fluorescence = set(groups["fluorescence"])
    for record in data.images:
        if record.id in fluorescence:
            sizes.setdefault(f"fluorescence {record.width}x{record.height}", []).append(record.id)
    return groups | {size: ids for size, ids in sorted(sizes.items()) if len(ids) > 1}


def score_groups(model: Any, processor: Any, valid: CocoData, choice: CocoData) -> list[dict[str, Any]]:
    """A row for each group of `valid`; `choice`: the images on which the threshold of StarDist's metric is chosen."""
    queries = model.config.num_queries

    def predict(data: CocoData) -> Any:
        return predict_split(model, processor, data, batch_size=1, max_detections=queries)

    chosen_on = read_ground_truth(choice.annotations, [record.id for record in choice.images])
    threshold = choose_threshold(chosen_on, read_results(predict(choice), chosen_on))
    found = predict(valid)
    rows = []
    for group, ids in group_images(valid).items():
        truth = read_ground_truth(valid.annotations, ids)
        results = read_results([one for one in found if one["image_id"] in set(ids)], truth)
        row: dict[str, Any] = {"group": group, "images": len(ids), "objects": len(truth.annotations)}
        for limit, of_what in ((100, ""), (10_000, " of all")):
            precision, _ = match_masks(truth, results, "segm", [limit])
            row |= {f"AP{of_what}": mean_of_defined(precision[:, :, :, 0])}
            row |= {f"AP50{of_what}": mean_of_defined(precision[0, :, :, 0])}
        [stardist] = score_stardist(truth, results, [threshold])
        row |= {"threshold": threshold, "stardist50": stardist.accuracy[0.5], "stardist": stardist.mean}
        rows.append(row)
    return rows


def write_fluorescence(train: CocoData, output: Path) -> None:
    """A data set of these images: every sixth, by name, in `valid`, the others in `train`."""
    coco = json.loads(Path(train.annotations).read_text(encoding="utf-8"))
    paths = {record.id: Path(record.path) for record in train.images}
    named = sorted((one for one in coco["images"] if one["id"] in paths), key=lambda one: str(one["file_name"]))
    chosen = {one["id"] for one in named[::THRESHOLD_EVERY]}
    for split in ("train", "valid"):
        images = [one for one in named if (one["id"] in chosen) == (split == "valid")]
        ids = {one["id"] for one in images}
        annotations = [one for one in coco["annotations"] if one["image_id"] in ids]
        (output / split).mkdir(parents=True)
        for one in images:
            shutil.copy(paths[one["id"]], output / split / one["file_name"])
        whole = coco | {"images": images, "annotations": annotations}
        (output / split / "_annotations.coco.json").write_text(json.dumps(whole), encoding="utf-8")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, required=True, help="the folder `nuclei`")
    parser.add_argument("--output", type=Path, help="write the rows to this JSON file")
    parser.add_argument("--write", type=Path, help="folder for the fluorescence images of `train`, divided in two")
    args = parser.parse_args(argv)
    if (args.model is None) == (args.write is None):
        parser.error("expected a model, or --write")
    found, _ = find_splits(args.data)
    train = split_by_kind(read_coco(found["train"]))["fluorescence"]
    if args.write:
        write_fluorescence(train, args.write)
        return
    keep_freed_memory()
    model, processor = load_network(args.model, "cpu")
    choice = dataclasses.replace(train, images=train.images[::THRESHOLD_EVERY])
    rows = score_groups(model, processor, read_coco(found["valid"]), choice)
    for row in rows:
        print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}))
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
