"""Test-time augmentation: views are turned and turned back exactly, and merged by the rule of the module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.errors import OptionError
from mask2former_dinov3.inference.image_processing import Prepared
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.inference.views import VIEWS, Turn, merge_views, turn, undo_turn
from mask2former_dinov3.instances import Instances

ALL = VIEWS["all"]


def boxes_in(*corners: tuple[int, int, int, int], scores: list[float], labels: list[int] | None = None) -> Instances:
    masks = np.zeros((len(corners), 20, 30), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, corners, strict=True):
        mask[y0:y1, x0:x1] = True
    return Instances.from_masks(masks, labels or [0] * len(corners), scores)


def turned_array(image: np.ndarray, view: Turn) -> np.ndarray:
    """The definition, on an image (H, W) without padding."""
    image = image.T if view.transposed else image
    image = image[::-1] if view.upside_down else image
    return image[:, ::-1] if view.mirrored else image


def test_views__are_the_eight_symmetries_of_the_square() -> None:
    image = np.arange(9).reshape(3, 3)
    assert len({turned_array(image, view).tobytes() for view in ALL}) == 8
    assert [len(views) for views in VIEWS.values()] == [1, 2, 4, 8]
    assert all(views[0] == Turn() for views in VIEWS.values())


@pytest.mark.parametrize("view", ALL)
def test_turn__turns_what_is_real_and_leaves_the_padding_at_the_right_and_bottom(view: Turn) -> None:
    values = np.full((2, 8, 10), -7.0, np.float32)
    values[:, :5, :6] = np.arange(60).reshape(2, 5, 6)
    mask = np.zeros((8, 10), bool)
    mask[:5, :6] = True
    before = values.copy()
    turned = turn(Prepared(values, mask, (50, 60)), view)
    expected = np.stack([turned_array(channel[:5, :6], view) for channel in before])
    rows, columns = expected.shape[1:]
    assert np.array_equal(turned.values[:, :rows, :columns], expected)
    assert (turned.values[:, rows:] == -7).all()
    assert (turned.values[:, :, columns:] == -7).all()
    assert turned.mask[:rows, :columns].all()
    assert turned.mask.sum() == 30
    assert turned.original_size == ((60, 50) if view.transposed else (50, 60))
    assert np.array_equal(values, before)


@pytest.mark.parametrize("view", ALL)
def test_undo_turn__undoes_the_view_and_keeps_the_rest(view: Turn) -> None:
    found = boxes_in((3, 2, 9, 12), (20, 0, 30, 5), scores=[0.9, 0.4], labels=[1, 0])
    masks = np.stack([turned_array(mask, view) for mask in found.masks])
    turned = Instances.from_masks(masks, found.labels, found.scores)
    back = undo_turn(turned, view)
    assert (back.height, back.width) == (20, 30)
    assert back.rles == found.rles
    assert back.labels.tolist() == [1, 0]
    assert len(undo_turn(turned[:0], view)) == 0


def merged(*views: Instances, queries: int = 50, **options: Any) -> Instances:
    filled = {"threshold": 0.5, "max_detections": 10, "copy_overlap": 1.0, **options}
    return merge_views(views, InferenceSettings(**filled), queries)


def test_merge_views__score_is_the_sum_over_views_by_their_number_and_the_mask_is_the_best() -> None:
    first = boxes_in((0, 0, 10, 10), (20, 0, 25, 5), scores=[0.8, 0.7])
    second = boxes_in((0, 0, 10, 9), (12, 12, 19, 19), scores=[0.9, 0.9])
    found = merged(first, second, threshold=0.0)
    assert found.scores.tolist() == pytest.approx([0.85, 0.45, 0.35])
    assert found.rles[0] == second.rles[0]
    kept = merged(first, second)
    assert len(kept) == 1
    assert kept.left_out.best_score == 0
    none = merged(first, second, threshold=0.9)
    assert len(none) == 0
    assert none.left_out.best_score == pytest.approx(0.85)


def test_merge_views__groups_one_instance_of_each_view_and_of_one_class() -> None:
    """Two queries on one object in one view stay two instances; another class is another group."""
    first = boxes_in((0, 0, 10, 10), (0, 0, 10, 9), scores=[0.8, 0.6])
    second = boxes_in((0, 0, 10, 10), scores=[0.8], labels=[1])
    assert merged(first, second, threshold=0.0).scores.tolist() == pytest.approx([0.4, 0.4, 0.3])
    assert merged(first, first, threshold=0.0).scores.tolist() == pytest.approx([0.8, 0.6])


def test_merge_views__limits_are_those_of_the_result_and_are_counted() -> None:
    one = boxes_in((0, 0, 5, 5), (10, 0, 15, 5), (20, 0, 25, 5), scores=[0.9, 0.8, 0.7], labels=[0, 1, 0])
    found = merged(one, one, max_detections=2, queries=3)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])
    assert (found.left_out.limit, found.left_out.full) == (1, 1)
    assert merged(one, one, threshold=(0.75, 0.85)).scores.tolist() == pytest.approx([0.9])
    inside = boxes_in((0, 0, 10, 10), (0, 0, 5, 5), scores=[0.9, 0.8])
    assert merged(inside, inside, copy_overlap=0.9).left_out.copies == 1


def test_predictor__with_views_says_the_same_of_a_turned_image(model_folder: Path) -> None:
    """All eight views of an image are those of its turned copy, so the result turns with it; one view's does not."""
    predictor = Predictor.from_pretrained(model_folder, device="cpu")
    side = predictor.processor.size["height"]
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    image, turned = Image.fromarray(pixels), Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 0, 2)))
    found, other = (predictor(one, threshold=0.0, tta="all", batch_size=3) for one in (image, turned))
    assert len(found) > 0
    assert found.scores[:5].tolist() == pytest.approx(other.scores[:5].tolist(), abs=1e-4)
    plain, plain_other = (predictor(one, threshold=0.0) for one in (image, turned))
    assert plain.scores[:5].tolist() != pytest.approx(plain_other.scores[:5].tolist(), abs=1e-4)
    tiles = predictor(image, threshold=0.0, tta="horizontal", tile=32)
    assert len(tiles) > 0


def test_settings__refuse_other_views() -> None:
    with pytest.raises(OptionError, match=r"^tta: expected one of none, horizontal, both, all, got "):
        InferenceSettings(tta="flips")  # type: ignore[arg-type]
