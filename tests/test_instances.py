"""Instances: RLE in, masks, boxes, COCO results and supervision's detections out."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask2former_dinov3.data.coco_types import CocoRle
from mask2former_dinov3.data.rle import compress
from mask2former_dinov3.errors import MissingExtraError
from mask2former_dinov3.instances import Instances, encode_masks

CATEGORIES = ((4, "fig"), (9, "date"))

# pycocotools 2.0.11 decodes in a way that NumPy 2 warns of; it is a reference here, not a part of the product.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def example(count: int = 5, height: int = 11, width: int = 17) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], Instances]:
    rng = np.random.default_rng(0)
    masks = rng.random((count, height, width)) > 0.7
    labels = [index % 2 for index in range(count)]
    scores = np.linspace(0.9, 0.1, count)
    return masks, Instances.from_masks(masks, labels, scores, CATEGORIES)


def test_encode_masks__gives_the_rle_of_pycocotools_for_every_memory_layout() -> None:
    masks, _ = example()
    expected = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    by_columns = np.ascontiguousarray(masks.transpose(0, 2, 1)).transpose(0, 2, 1)
    for given in (masks, by_columns, masks.astype(np.uint8) * 255, masks.astype(np.float32)):
        for rle, reference in zip(encode_masks(given), expected, strict=True):
            assert rle["counts"] == reference["counts"].decode()
            assert rle["size"] == [11, 17]


def test_instances__masks_boxes_and_areas_are_those_of_the_bitmaps() -> None:
    masks, found = example()
    assert found.masks.dtype == np.bool_
    np.testing.assert_array_equal(found.masks, masks)
    np.testing.assert_array_equal(found.areas, masks.sum((1, 2)))
    for mask, box in zip(masks, found.boxes, strict=True):
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert [str(array.dtype) for array in (found.labels, found.scores, found.boxes)] == ["int64", "float32", "float32"]


def test_instances__may_be_none_at_all() -> None:
    found = Instances.from_masks(np.zeros((0, 8, 9), bool), [], [], CATEGORIES)
    assert len(found) == 0
    assert found.masks.shape == (0, 8, 9)
    assert found.boxes.shape == (0, 4)
    assert found.areas.shape == (0,)
    assert found.to_coco(1) == []
    assert list(found) == []
    assert len(found[found.scores > 0.5]) == 0


def test_instances__choose_by_index_slice_list_and_condition() -> None:
    masks, found = example()
    np.testing.assert_array_equal(found[2].masks, masks[2:3])
    np.testing.assert_array_equal(found[-1].masks, masks[4:])
    np.testing.assert_array_equal(found[1:3].masks, masks[1:3])
    np.testing.assert_array_equal(found[[3, 0]].scores, found.scores[[3, 0]])
    np.testing.assert_array_equal(found[found.scores > 0.4].masks, masks[:3])
    np.testing.assert_array_equal(found[[True, False, False, True, False]].masks, masks[[0, 3]])
    assert len(found[[]]) == 0
    assert [one.names[0] for one in found] == ["fig", "date", "fig", "date", "fig"]
    with pytest.raises(IndexError):
        found[5]


def test_to_coco__has_the_ids_of_the_data_set_and_reads_back() -> None:
    masks, found = example()
    results = json.loads(json.dumps(found.to_coco(77)))
    assert [result["category_id"] for result in results] == [4, 9, 4, 9, 4]
    assert {result["image_id"] for result in results} == {77}
    for result, mask, score in zip(results, masks, found.scores, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(result["segmentation"]), mask)
        assert np.float32(result["score"]) == score
        assert set(result) == {"image_id", "category_id", "segmentation", "score"}


def test_to_coco__without_categories_uses_the_labels() -> None:
    masks, _ = example(2)
    found = Instances.from_masks(masks, [5, 0], [1, 0.5])
    assert [result["category_id"] for result in found.to_coco("a")] == [5, 0]
    assert found.names == ["class 5", "class 0"]


def test_to_supervision__hands_everything_over(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, found = example()
    module = types.ModuleType("supervision")
    module.__spec__ = importlib.machinery.ModuleSpec("supervision", None)
    module.Detections = lambda **fields: fields  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", module)
    detections = found.to_supervision()
    np.testing.assert_array_equal(detections["mask"], masks)
    np.testing.assert_array_equal(detections["xyxy"], found.boxes)
    np.testing.assert_array_equal(detections["confidence"], found.scores)
    np.testing.assert_array_equal(detections["class_id"], found.labels)
    assert detections["data"]["class_name"].tolist() == found.names


def test_to_supervision__says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtraError) as raised:
        example()[1].to_supervision()
    assert str(raised.value) == (
        "Instances.to_supervision needs supervision, not installed here; "
        "run pip install 'mask2former-dinov3[supervision]' in this environment"
    )


def test_instances__refuse_what_does_not_belong_together() -> None:
    masks, found = example(2)
    with pytest.raises(ValueError, match="2 masks, 1 labels and 2 scores"):
        Instances.from_masks(masks, [0], [1, 1])
    with pytest.raises(ValueError, match="mask 0 is 11x17 pixels, the image 5x17"):
        Instances(5, 17, found.rles, found.labels, found.scores)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.1"):
        Instances.from_masks(masks, [0, 2], [1, 1], CATEGORIES)


def test_instances__boxes_and_windows_equal_the_coco_api() -> None:
    import faster_coco_eval.core.mask as coco

    rng = np.random.default_rng(0)
    masks = np.stack([rng.random((9, 7)) < share for share in (0.0, 0.02, 0.1, 0.5, 0.9, 1.0) for _ in range(20)])
    found = Instances.from_masks(masks, [0] * len(masks), [0.5] * len(masks))
    expected = np.asarray(coco.toBbox([dict(rle) for rle in found.rles])).reshape(-1, 4)
    expected[:, 2:] += expected[:, :2]
    np.testing.assert_array_equal(found.boxes, expected)
    for index, mask in enumerate(masks):
        window = found.window(index)
        pasted = np.zeros(mask.shape, dtype=bool)
        pasted[window.place] = window.pixels
        np.testing.assert_array_equal(pasted, mask)


def test_instances__boxes_hold_where_32_bits_do_not() -> None:
    side = 100_000
    start = 99_000 * side + 5
    runs = np.array([start, 10, side - 10, 10, side * side - start - side - 10])
    counts = str(compress(runs, np.array([len(runs)]))[0], "ascii")
    found = Instances(side, side, (CocoRle(size=[side, side], counts=counts),), [0], [0.5])  # type: ignore[arg-type]
    assert found.boxes.tolist() == [[99_000, 5, 99_002, 15]]
    assert found.window(0).pixels.shape == (10, 2)
    assert found.areas.tolist() == [20]


def test_instances__shrink_reads_masks_at_the_new_pixels() -> None:
    masks = np.zeros((2, 40, 60), dtype=bool)
    masks[0, 8:24, 12:32] = True
    masks[1, 3, 3] = True  # meets no pixel
    found = Instances.from_masks(masks, [0, 1], [0.5, 0.4]).shrink(10, 15)
    assert (found.height, found.width, len(found)) == (10, 15, 1)
    np.testing.assert_array_equal(found.mask(0), masks[0, 2::4, 2::4])


def test_filter__by_score_and_class() -> None:
    _, found = example()
    labels, scores = np.array([0, 1, 0, 1, 0]), np.array([0.9, 0.8, 0.5, 0.4, 0.3], np.float32)
    found = Instances(found.height, found.width, found.rles, labels, scores, ((3, "a"), (7, "b")))
    assert found.filter(min_score=0.5).labels.tolist() == [0, 1, 0]
    assert found.filter(classes=["b"]).short_scores == [0.8, 0.4]
    assert found.filter(min_score=0.4, classes=[0, "b"]).short_scores == [0.9, 0.8, 0.5, 0.4]
    assert len(found.filter(classes=[])) == 0
    for wrong in ("c", 2, -1):
        with pytest.raises(ValueError, match=f"classes: expected a, b, got {wrong!r}"):
            found.filter(classes=[wrong])
    unnamed = Instances(found.height, found.width, found.rles, found.labels, found.scores)
    assert len(unnamed.filter(classes=[1])) == 2


def test_concatenate__is_the_inverse_of_choosing() -> None:
    masks, found = example()
    joined = Instances.concatenate([found[:2], found[2:]])
    np.testing.assert_array_equal(joined.masks, masks)
    assert (joined.labels.tolist(), joined.short_scores) == (found.labels.tolist(), found.short_scores)
    assert Instances.concatenate([found[:0]]).masks.shape == (0, found.height, found.width)
    with pytest.raises(ValueError, match="expected at least one part to concatenate, got none"):
        Instances.concatenate([])
    with pytest.raises(ValueError, match=r"expected parts of 11x17 pixels with categories .*, got 4x4"):
        Instances.concatenate([found, Instances.from_masks(np.zeros((0, 4, 4), dtype=bool), [], [])])


def test_to_coco_annotations__have_ids_boxes_and_areas() -> None:
    masks, found = example(3)
    entries = found.to_coco_annotations(4, first_id=10)
    assert [one["id"] for one in entries] == [10, 11, 12]
    assert [one["area"] for one in entries] == masks.sum((1, 2)).tolist()
    for one, result, (x0, y0, x1, y1) in zip(entries, found.to_coco(4), found.boxes.tolist(), strict=True):
        assert one["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert {key: one[key] for key in result} == result
    assert json.loads(json.dumps(entries)) == entries


def test_to_dataframe__has_a_row_for_each_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    masks, found = example(3)
    frame = found.to_dataframe()
    assert frame["area"].tolist() == masks.sum((1, 2)).tolist()
    assert frame["class"].tolist() == found.names
    np.testing.assert_allclose(np.pi * (frame["diameter"] / 2) ** 2, frame["area"])
    np.testing.assert_array_equal(frame[["x0", "y0", "x1", "y1"]].to_numpy(), found.boxes)
    assert len(found[:0].to_dataframe()) == 0
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"to_dataframe needs pandas"):
        found.to_dataframe()
