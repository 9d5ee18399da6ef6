"""Boxes, areas and picture sizes that contradict the masks are found, counted, and their cause is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faster_coco_eval.core.mask as mask_api
import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.data import mask_checks
from mask2former_dinov3.data.coco import parse_coco
from mask2former_dinov3.data.faults import Fault
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.data.mask_arrays import collect_masks
from mask2former_dinov3.data.mask_causes import turn_back
from mask2former_dinov3.data.mask_checks import check_masks, find_filled_holes
from support.coco import rle_of

Points = np.ndarray[Any, np.dtype[np.float64]]
Change = Callable[[dict[str, Any], int, int], None]  # of an annotation, with the picture's height and width


def ellipse(center: Points, radii: Points) -> Points:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.asarray(center + radii * np.stack([np.cos(angle), np.sin(angle)], axis=1))


def make(height: int = 96, width: int = 160, pictures: int = 5, each: int = 4) -> dict[str, Any]:
    """Pictures of ellipses: polygons with their own boxes and areas."""
    rng = np.random.default_rng(1)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, pictures + 1):
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width})
        for _ in range(each):
            radii = rng.uniform((6, 6), (width * 0.12, height * 0.15))
            points = ellipse(rng.uniform(radii, (width, height) - radii), radii)
            low, high = points.min(0), points.max(0)
            x, y = points.T
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "iscrowd": 0,
                    "segmentation": [points.ravel().tolist()],
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "area": float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2),
                }
            )
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}


def find(content: dict[str, Any], folder: Path) -> list[Fault]:
    (folder / "a.json").write_text(json.dumps(content))
    data, _ = parse_coco(Split("train", folder / "a.json", folder))
    return check_masks(data)


def changed(change: Change, *, boxes: bool = True, size: dict[str, int] | None = None) -> dict[str, Any]:
    content = make(**(size or {}))
    for annotation in content["annotations"]:
        change(annotation, content["images"][0]["height"], content["images"][0]["width"])
        for key in () if boxes else ("bbox", "area"):
            del annotation[key]
    return content


def points_of(annotation: dict[str, Any]) -> Points:
    return np.reshape(annotation["segmentation"][0], (-1, 2))


def moved(change: Callable[[Points, int, int], Points]) -> Change:
    """Another place for the polygon, not for the box."""

    def apply(annotation: dict[str, Any], height: int, width: int) -> None:
        annotation["segmentation"] = [np.asarray(change(points_of(annotation), height, width)).ravel().tolist()]

    return apply


def as_rle(order: str, invert: bool = False) -> Change:
    def apply(annotation: dict[str, Any], height: int, width: int) -> None:
        code = mask_api.merge(mask_api.frPyObjects(annotation["segmentation"], height, width))
        mask = np.asarray(mask_api.decode(code)).astype(bool) ^ invert
        runs = rle_of(mask if order == "F" else mask.T)["counts"]
        annotation["segmentation"] = {"size": [height, width], "counts": runs}

    return apply


def new_box(change: Callable[..., list[float]]) -> Change:
    def apply(annotation: dict[str, Any], height: int, width: int) -> None:
        annotation["bbox"] = change(*annotation["bbox"], height, width)

    return apply


CONTRADICTIONS: list[tuple[str, Change, dict[str, int], str]] = [
    (
        "percent",
        moved(lambda p, h, w: p / (w, h) * 100),
        {"height": 480, "width": 640},
        "hold percent of the picture's",
    ),
    (
        "shares",
        moved(lambda p, h, w: p / (w, h)),
        {},
        "the polygons hold shares of the picture's size (0 to 1): multiply",
    ),
    (
        "exchanged",
        moved(lambda p, h, w: p[:, ::-1]),
        {},
        "x and y are exchanged in masks or boxes; of both, the masks go",
    ),
    (
        "larger",
        moved(lambda p, h, w: p * 2),
        {},
        "the boxes are 0.5 times as large and as far from the top left corner",
    ),
    ("smaller", moved(lambda p, h, w: p / 2), {}, "the boxes are 2 times as large and as far from the top left corner"),
    (
        "shifted",
        moved(lambda p, h, w: np.add(p, (13, -9))),
        {},
        "the boxes are -13 pixels to the right of the masks and 9 below",
    ),
    ("bottom up", moved(lambda p, h, w: p * (1, -1) + (0, h)), {}, "y is counted from the bottom edge"),
    ("half turn", moved(lambda p, h, w: (w, h) - p), {}, "the picture turned by 180 degrees"),
    ("row-major", as_rle("C"), {}, "the runs of the RLE go along the rows; COCO's go down the columns"),
    ("row-major, square", as_rle("C"), {"width": 96}, "the runs of the RLE go along the rows"),
    ("inverted", as_rle("F", invert=True), {}, "the runs of the RLE begin with the object"),
    (
        "corners",
        new_box(lambda x, y, w, h, *_: [x, y, x + w, y + h]),
        {},
        "`bbox` holds left, top, right, bottom in pix",
    ),
    (
        "centre in shares",
        new_box(lambda x, y, w, h, height, width: [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]),
        {},
        "`bbox` holds centre x, centre y, width, height in shares of the picture's size",
    ),
    (
        "top first in thousandths",
        new_box(lambda x, y, w, h, a, b: [1000 * y / a, 1000 * x / b, 1000 * (y + h) / a, 1000 * (x + w) / b]),
        {},
        "`bbox` holds top, left, bottom, right in thousandths",
    ),
    ("no size", new_box(lambda *_: [0.0, 0.0, 0.0, 0.0]), {}, "the boxes have no size: leave `bbox` out"),
]


@pytest.mark.parametrize(
    ("change", "size", "cause"), [case[1:] for case in CONTRADICTIONS], ids=[case[0] for case in CONTRADICTIONS]
)
def test_check_masks__names_the_cause_of_boxes_elsewhere(
    change: Change, size: dict[str, int], cause: str, tmp_path: Path
) -> None:
    (fault,) = find(changed(change, size=size), tmp_path)
    assert (fault.severity, fault.kind) == ("warning", "box differs from mask")
    assert cause in fault.reason
    assert len(fault.places) >= 19  # of 20; a mask in the middle may stay where it was
    assert fault.reason.startswith(f"bbox: {len(fault.places)} of 20 boxes lie elsewhere than their masks; likeliest")


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("boxes", [True, False])
def test_check_masks__knows_pictures_that_exif_turns(orientation: int, boxes: bool, tmp_path: Path) -> None:
    """The masks are drawn on the picture as Pillow turns it; without boxes, only quarter turns show."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    rows, columns = np.mgrid[:96, :160].astype(np.uint8)
    stored = Image.fromarray(np.stack([columns, rows, rows], axis=2))  # each pixel says where it is
    for number in range(1, 6):
        stored.save(tmp_path / f"{number}.png", exif=exif)
    with Image.open(tmp_path / "1.png") as picture:
        turned = np.asarray(ImageOps.exif_transpose(picture)).astype(int)
    place = {(x, y): (j, i) for i, row in enumerate(turned.tolist()) for j, (x, y, _) in enumerate(row)}

    def turn(points: Points, height: int, width: int) -> Points:
        low = [place[int(min(x, width - 1)), int(min(y, height - 1))] for x, y in points]
        return np.asarray(low, dtype=float) + 0.5

    faults = find(changed(moved(turn), boxes=boxes), tmp_path)
    if boxes or orientation > 4:
        assert "the masks are those of the picture as EXIF turns it" in faults[0].reason
        assert faults[0].kind == ("box differs from mask" if boxes else "mask outside the picture")
    else:
        assert faults == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turn_back__is_pillows_turn_undone(orientation: int) -> None:
    from PIL import ImageOps

    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[3:8, 11:25] = 255
    image = Image.fromarray(mask)
    exif = image.getexif()
    exif[0x0112] = orientation
    turned = ImageOps.exif_transpose(image).getbbox()
    boxes = turn_back(np.array([turned], dtype=float), np.array([[20.0, 30.0]]), orientation)
    assert boxes.tolist() == [[11, 3, 25, 8]]


@pytest.mark.parametrize(
    ("change", "size", "kind", "cause", "number"),
    [
        (
            moved(lambda p, h, w: p / (w, h) * 100),
            {"height": 480, "width": 640},
            "coordinates in another unit",
            "percent",
            20,
        ),
        (
            moved(lambda p, h, w: p / (w, h)),
            {},
            "coordinates in another unit",
            "within 0..1: they look like shares",
            20,
        ),
        (moved(lambda p, h, w: p[:, ::-1]), {}, "mask outside the picture", "x and y are exchanged", 12),
        (
            moved(lambda p, h, w: p * 2),
            {},
            "mask outside the picture",
            "1.81 times the width and 1.97 times the height",
            17,
        ),
        (
            moved(lambda p, h, w: np.add(p, (40, 0))),
            {},
            "mask outside the picture",
            "training cuts them at its edge",
            None,
        ),
        (as_rle("C"), {}, "runs along the rows", "write them in Fortran order", 20),
        (
            moved(lambda p, h, w: p / 2),
            {"pictures": 12},
            "masks at the top left alone",
            "50% of the width and 49% of the height, in any of 12",
            1,
        ),
    ],
    ids=["percent", "shares", "exchanged", "larger", "shifted", "row-major", "smaller"],
)
def test_check_masks__needs_no_boxes(
    change: Change, size: dict[str, int], kind: str, cause: str, number: int | None, tmp_path: Path
) -> None:
    (fault,) = find(changed(change, boxes=False, size=size), tmp_path)
    assert fault.kind == kind
    assert cause in fault.reason
    assert number is None or abs(len(fault.places) - number) <= 2
    assert fault.severity == ("note" if "top left" in kind else "warning")


def smaller_inside(annotation: dict[str, Any], height: int, width: int) -> None:
    points = points_of(annotation)
    hole = (points - points.mean(0)) * 0.6 + points.mean(0)
    annotation["segmentation"].append(hole[::-1].ravel().tolist())
    annotation["area"] *= 1 - 0.36


@pytest.mark.parametrize(
    ("change", "severity", "cause"),
    [
        (lambda a, h, w: a.update(area=0), "warning", "they are 0: leave `area` out"),
        (lambda a, h, w: a.update(area=a["area"] / h / w), "warning", "shares of the picture's area"),
        (lambda a, h, w: a.update(area=100 * a["area"] / h / w), "warning", "percent of the picture's area"),
        (lambda a, h, w: a.update(area=a["area"] * 4), "warning", "a picture scaled by 2 along each side"),
        (
            smaller_inside,
            "warning",
            "some parts of these polygons are holes, and COCO's polygons have none: they are filled",
        ),
        (lambda a, h, w: a.update(area=a["area"] * (0.5 + a["id"] / 80)), "warning", "holes were lost"),
        (
            lambda a, h, w: a.update(area=a["area"] * (1.5 + a["id"] / 20)),
            "warning",
            "parts of the objects are missing",
        ),
        (lambda a, h, w: a.update(area=a["bbox"][2] * a["bbox"][3]), "note", "are those of the box, not of the mask"),
    ],
    ids=["zero", "shares", "percent", "scaled", "holes as parts", "holes lost", "parts lost", "of the box"],
)
def test_check_masks__names_the_cause_of_areas_that_differ(
    change: Change, severity: str, cause: str, tmp_path: Path
) -> None:
    (fault,) = find(changed(change, size={"height": 200, "width": 200}), tmp_path)
    assert fault.severity == severity
    assert fault.reason.startswith("area: ")
    assert cause in fault.reason


def test_check_masks__says_nothing_of_what_agrees(tmp_path: Path) -> None:
    """Boxes a pixel off, of whole pixels, of the pixels of an RLE; parts that overlap; a pixel at the corner."""

    def overlapping(annotation: dict[str, Any], height: int, width: int) -> None:
        code = mask_api.merge(mask_api.frPyObjects(annotation["segmentation"] * 2, height, width))
        annotation["segmentation"] *= 2  # the sum of the parts' areas is twice that of their union
        annotation["area"] = float(mask_api.area(code))

    corner = make()
    corner["annotations"][0].update(segmentation=[[0, 0, 1, 0, 1, 1, 0, 1]], bbox=[0, 0, 1, 1], area=1)
    grown = new_box(lambda x, y, w, h, *_: [int(x), int(y), int(w) + 2, int(h) + 2])
    for content in (make(), changed(grown), changed(as_rle("F")), changed(as_rle("F"), boxes=False), corner):
        assert find(content, tmp_path) == []
    assert find(changed(overlapping), tmp_path) == []
    assert find({**make(), "annotations": []}, tmp_path) == []


def test_check_masks__a_box_around_its_mask_is_a_note(tmp_path: Path) -> None:
    (fault,) = find(changed(new_box(lambda x, y, w, h, *_: [x - h % 7 - 3, y - 5, w + h, h + 10])), tmp_path)
    assert (fault.severity, fault.kind) == ("note", "box larger than mask")


def test_check_masks__separates_causes_in_one_file(tmp_path: Path) -> None:
    """8 polygons in percent, 4 boxes shifted, 2 boxes anywhere, 6 that agree."""
    content = make()
    for annotation in content["annotations"][:8]:
        moved(lambda p, h, w: p / (w, h) * 100)(annotation, 96, 160)
    for annotation in content["annotations"][8:12]:
        moved(lambda p, h, w: np.add(p, (20, 10)))(annotation, 96, 160)
    for annotation in content["annotations"][12:14]:
        annotation["bbox"] = [1.0, 1.0, 150.0, 3.0]
    faults = find(content, tmp_path)
    assert [len(fault.places) for fault in faults] == [8, 4, 2]
    assert "percent" in faults[0].reason
    assert "shift" in faults[1].reason
    assert "no common cause was found" in faults[2].reason
    assert str(faults[2]).endswith("(annotations 13, 14 of image 4)")


def test_check_masks__boxes_of_other_annotations(tmp_path: Path) -> None:
    content = make()
    boxes = [annotation["bbox"] for annotation in content["annotations"]]
    for number, annotation in enumerate(content["annotations"]):
        annotation["bbox"] = boxes[number - 1 if number % 4 else number + 3]
    (fault,) = find(content, tmp_path)
    assert "the boxes are those of other annotations of the same picture" in fault.reason


def test_find_filled_holes__are_parts_inside_parts(tmp_path: Path) -> None:
    """A square in a square, two squares side by side, and one in the notch of an L, whose box alone is inside."""

    def square(x: float, y: float, side: float) -> list[float]:
        return [x, y, x + side, y, x + side, y + side, x, y + side]

    content = make(pictures=1, each=3)
    notched = [10, 10, 60, 10, 60, 20, 20, 20, 20, 60, 10, 60]
    for annotation, parts in zip(
        content["annotations"],
        (
            [square(10, 10, 40), square(20, 20, 10)],
            [square(10, 10, 10), square(30, 10, 9)],
            [notched, square(40, 40, 9)],
        ),
        strict=True,
    ):
        annotation["segmentation"] = parts
    (tmp_path / "a.json").write_text(json.dumps(content))
    data, _ = parse_coco(Split("train", tmp_path / "a.json", tmp_path))
    (fault,) = find_filled_holes(collect_masks(data))
    assert fault.places == [(1, 1)]
    assert fault.reason.startswith(
        "segmentation: 1 polygon with a part inside another part: COCO unites parts, so a hole"
    )


def test_check_masks__piece_by_piece_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third box is wrong, every fourth mask lies outside, every fifth area is wrong, the last ones are shares."""
    content = make(each=9)
    for annotation in content["annotations"]:
        number = annotation["id"]
        if number % 3 == 0:
            annotation["bbox"] = [1, 1, 3, 3]
        elif number % 4 == 0:
            annotation["segmentation"] = [(points_of(annotation) + 150).ravel().tolist()]
            del annotation["bbox"]
        elif number % 5 == 0:
            annotation["area"] *= 3
        elif number > 37:
            annotation["segmentation"] = [(points_of(annotation) / 160).ravel().tolist()]
            del annotation["bbox"]
    whole = find(content, tmp_path)
    assert {"box differs from mask", "mask outside the picture", "coordinates in another unit"} <= {
        fault.kind for fault in whole
    }
    for at_once in (1, 4, 44):
        monkeypatch.setattr(mask_checks, "MASKS_AT_ONCE", at_once)
        assert find(content, tmp_path) == whole
