"""Sizes of objects on the canvas, and the warning where the smallest random scale erases some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.data.check import check_data
from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.data.mask_arrays import collect_masks
from mask2former_dinov3.data.object_sizes import check_smallest_scale, keeping_scale, measure_objects


def square(x: int, y: int, side: int) -> list[list[int]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def write_squares(root: Path, sides: list[int]) -> Path:
    """One image of 200 x 100 (height x width) with a square of each side, the first one a crowd region."""
    Image.new("RGB", (100, 200)).save(root / "a.png")
    annotations: list[dict[str, Any]] = [
        {"id": number, "image_id": 1, "category_id": 1, "iscrowd": int(number == 0), "area": 9999}
        | {"segmentation": square(2, 2, side)}
        for number, side in enumerate([50, *sides])
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 200, "width": 100}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "square"}],
    }
    (root / "a.json").write_text(json.dumps(content))
    return root / "a.json"


def test_measure_objects__sides_are_those_of_the_mask_on_the_canvas(tmp_path: Path) -> None:
    splits, _ = find_splits(write_squares(tmp_path, [5, 20]), valid_split=0)
    found = measure_objects(read_coco(splits["train"]), (400, 400))
    assert found.places_of(np.arange(2)) == [(1, 1), (1, 2)]  # without the crowd region
    assert found.sides.tolist() == [10, 40]  # 200 rows become 400; the file's area is wrong


def test_measure_objects__of_an_outline_that_crosses_itself_its_pixels(tmp_path: Path) -> None:
    """The halves of an hourglass cancel in the shoelace formula; COCO's rasteriser fills both."""
    file = write_squares(tmp_path, [5, 5])
    content = json.loads(file.read_text())
    content["annotations"][1]["segmentation"] = [[0, 0, 16, 16, 16, 0, 0, 16]]
    file.write_text(json.dumps(content))
    splits, _ = find_splits(file, valid_split=0)
    data = read_coco(splits["train"])
    assert measure_objects(data, (200, 100)).areas.tolist() == [128, 25]
    assert check_smallest_scale(collect_masks(data), (200, 100), 0.2) == []


@pytest.mark.parametrize(("share", "scale"), [(1.0, 0.5), (0.99, 0.34), (0.5, 0.01)])
def test_keeping_scale__is_the_smallest_with_a_pixel_left(share: float, scale: float) -> None:
    sides = np.array([2.0, *[3.0] * 100, *[100.0] * 110])
    assert keeping_scale(sides, share) == scale


def test_check_smallest_scale__names_count_smallest_and_a_scale_that_keeps_all(tmp_path: Path) -> None:
    splits, _ = find_splits(write_squares(tmp_path, [30, 5, 8, 40]), valid_split=0)
    data = read_coco(splits["train"])
    (fault,) = check_smallest_scale(collect_masks(data), (200, 200), 0.15)
    assert (fault.severity, fault.kind) == ("warning", "vanishing at the smallest scale")
    assert fault.places == [(1, 2)]
    assert fault.reason.startswith(
        "1 of 4 objects cover less than one pixel of the canvas of 200 x 200 at the smallest random scale, scale_min "
        "0.15: "
    )
    assert "side of 5.0 pixels at scale 1, 0.75 at scale_min; scale_min 0.2 keeps all of them" in fault.reason
    assert check_smallest_scale(collect_masks(data), (200, 200), 0.2) == []


def test_check_smallest_scale__asks_for_a_larger_canvas_where_no_scale_is_enough(tmp_path: Path) -> None:
    splits, _ = find_splits(write_squares(tmp_path, [5]), valid_split=0)
    (fault,) = check_smallest_scale(collect_masks(read_coco(splits["train"])), (32, 32), 0.5)
    assert "no scale up to 1 keeps all of them on this canvas: use a larger one (80 x 80 with scale_min 0.5)" in (
        fault.reason
    )
    assert check_smallest_scale(collect_masks(read_coco(splits["train"])), (80, 80), 0.5) == []


def test_check_data__warns_of_vanishing_objects_in_train_alone(tmp_path: Path) -> None:
    splits, notes = find_splits(write_squares(tmp_path, [5]), valid_split=0)
    both = splits | {"valid": splits["train"]}
    report = check_data(both, notes, canvas=(200, 200), scale_min=0.1)
    kinds = {name: [fault.kind for fault in split.of("warning")] for name, split in report.splits.items()}
    assert kinds["train"].count("vanishing at the smallest scale") == 1
    assert "vanishing at the smallest scale" not in kinds["valid"]
    without = check_data(splits, notes, canvas=(200, 200)).splits["train"].of("warning")
    assert "vanishing at the smallest scale" not in [fault.kind for fault in without]
