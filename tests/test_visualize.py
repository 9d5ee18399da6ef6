"""Overlays: everything is seen, neighbours differ, labels are readable, nothing else is touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mask2former_dinov3.errors import OptionError
from mask2former_dinov3.instances import Instances
from mask2former_dinov3.visualize import FILL, PALETTE, draw_instances, enlargement


def boxes(shape: tuple[int, int], *corners: tuple[int, int, int, int]) -> Instances:
    """Rectangles (top, left, bottom, right) as instances."""
    masks = np.zeros((len(corners), *shape), bool)
    for mask, (top, left, bottom, right) in zip(masks, corners, strict=True):
        mask[top:bottom, left:right] = True
    scores = np.linspace(0.9, 0.5, len(corners))
    return Instances.from_masks(masks, [0] * len(corners), scores, ((1, "cell"),))


def grey(shape: tuple[int, int], value: int = 128) -> NDArray[np.uint8]:
    return np.full((*shape, 3), value, np.uint8)


def hue(picture: NDArray[Any], row: int, column: int) -> NDArray[np.float64]:
    """The direction in which a pixel has left grey."""
    colour = picture[row, column].astype(float) - picture[row, column].mean()
    direction: NDArray[np.float64] = colour / (np.linalg.norm(colour) + 1e-9)
    return direction


def test_draw_instances__colours_the_instance_and_leaves_the_rest_and_its_input_alone() -> None:
    image, found = grey((200, 300)), boxes((200, 300), (50, 60, 150, 200))
    before = image.copy()
    picture = draw_instances(image, found, labels=False)
    assert picture.shape == (200, 300, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    changed = (picture != image).any(-1)
    assert changed[52:148, 62:198].all()
    changed[46:154, 56:204] = False
    assert not changed.any()
    assert np.abs(picture[100, 130].astype(int) - 128).max() < 100  # the object is still seen through the fill


def test_draw_instances__blends_each_byte_of_the_fill_with_the_colour() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    picture = draw_instances(image, boxes((90, 120), (10, 20, 80, 100)), labels=False, colours="class")
    inside = (slice(20, 70), slice(30, 90))  # away from the outline
    np.testing.assert_array_equal(
        picture[inside], (image[inside] * (1 - FILL) + PALETTE[0] * FILL + 0.5).astype(np.uint8)
    )


@pytest.mark.parametrize("value", [0, 128, 255])
def test_draw_instances__outline_stands_out_on_any_ground(value: int) -> None:
    image = grey((100, 100), value)
    picture = draw_instances(image, boxes((100, 100), (20, 20, 80, 80)), labels=False).astype(int)
    line, inside, outside = picture[20, 50], picture[50, 50], picture[5, 5]
    assert np.abs(line - inside).max() > 40
    assert np.abs(line - outside).max() > 60


def test_draw_instances__small_ones_lie_on_large_ones_whatever_their_order() -> None:
    for order in ((0, 1), (1, 0)):
        both = boxes((200, 200), (0, 0, 200, 200), (90, 90, 110, 110))[list(order)]
        picture = draw_instances(grey((200, 200)), both, labels=False)
        assert hue(picture, 100, 100) @ hue(picture, 40, 40) < 0.9


def test_draw_instances__neighbours_differ() -> None:
    corners = [
        (10 + 40 * row, 10 + 40 * column, 48 + 40 * row, 48 + 40 * column) for row in range(6) for column in range(6)
    ]
    picture = draw_instances(grey((260, 260)), boxes((260, 260), *corners), labels=False)
    for row in range(6):
        for column in range(5):
            left, right = (picture[29 + 40 * row, 29 + 40 * (column + step)].astype(int) for step in (0, 1))
            assert np.abs(left - right).sum() > 20


def test_draw_instances__uses_the_palette_evenly() -> None:
    corners = [
        (5 + 50 * row, 5 + 50 * column, 15 + 50 * row, 15 + 50 * column) for row in range(6) for column in range(6)
    ]
    picture = draw_instances(grey((300, 300)), boxes((300, 300), *corners), labels=False)
    colours = {tuple(picture[10 + 50 * row, 10 + 50 * column]) for row in range(6) for column in range(6)}
    assert len(colours) == len(PALETTE)


def test_draw_instances__labels_cover_neither_instances_nor_each_other() -> None:
    shape = (600, 800)
    found = boxes(shape, (100, 100, 250, 300), (100, 310, 250, 500), (400, 200, 500, 420))
    image = grey(shape)
    plain, labelled = (draw_instances(image, found, labels=labels) for labels in (False, True))
    written = (plain != labelled).any(-1)
    assert written.sum() > 3 * 500
    assert written[found.masks.any(0)].mean() < 0.02


def test_draw_instances__labels_stay_in_the_picture_and_tiny_instances_have_none() -> None:
    image = grey((120, 160))
    in_the_corners = boxes((120, 160), (0, 0, 40, 60), (80, 100, 120, 160))
    assert (draw_instances(image, in_the_corners) != draw_instances(image, in_the_corners, labels=False)).any()
    tiny = boxes((120, 160), (50, 50, 54, 54))
    np.testing.assert_array_equal(draw_instances(image, tiny), draw_instances(image, tiny, labels=False))


def test_draw_instances__a_full_picture_still_gets_its_label() -> None:
    image, everything = grey((300, 300)), boxes((300, 300), (0, 0, 300, 300))
    assert (draw_instances(image, everything) != draw_instances(image, everything, labels=False)).any()


def test_draw_instances__enlarges_by_a_whole_factor() -> None:
    found = boxes((64, 64), (10, 10, 40, 40), (50, 50, 51, 51))
    picture = draw_instances(grey((64, 64)), found, scale=4, labels=False)
    assert picture.shape == (256, 256, 3)
    changed = (picture != 128).any(-1)
    assert changed[44:156, 44:156].all()
    assert changed[200:204, 200:204].any()  # one pixel does not vanish
    assert not changed[:36].any()


def test_draw_instances__nothing_found_is_the_picture_itself() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_instances(image, boxes((30, 40))), image)


def test_enlargement__gives_small_pictures_and_small_instances_room() -> None:
    assert enlargement(boxes((256, 256))) == 4
    assert enlargement(boxes((700, 800), (0, 0, 300, 300))) == 1
    assert enlargement(boxes((1000, 1200), (0, 0, 12, 12))) == 2
    assert enlargement(boxes((3000, 4000), (0, 0, 5, 5))) == 1


def test_draw_instances__refuses_another_images_instances() -> None:
    with pytest.raises(ValueError, match="image: expected RGB of uint8 with 30x40 pixels, as the instances"):
        draw_instances(grey((40, 30)), boxes((30, 40)))
    with pytest.raises(ValueError, match="float64"):
        draw_instances(np.zeros((30, 40, 3)), boxes((30, 40)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("colours", "classes", "by_class"), [("auto", 2, True), ("auto", 1, False)])
def test_draw_instances__colours_by_class_where_there_are_several(colours: str, classes: int, by_class: bool) -> None:
    """Two neighbours of one class have one colour if the model has several classes, or if that is asked for."""
    masks = np.zeros((3, 100, 300), bool)
    for index in range(3):
        masks[index, 20:80, 20 + 90 * index : 100 + 90 * index] = True
    categories = tuple((number, f"class {number}") for number in range(1, classes + 1))
    labels = [0, 0, classes - 1]
    found = Instances.from_masks(masks, labels, [0.9, 0.8, 0.7], categories)

    def hues(colours: str) -> list[NDArray[np.float64]]:
        picture = draw_instances(grey((100, 300)), found, labels=False, colours=colours)
        return [hue(picture, 50, column) for column in (50, 140, 230)]

    first, second, third = hues(colours)
    assert np.allclose(first, second, atol=0.02) == by_class
    assert not np.allclose(second, third, atol=0.1)
    for wanted, same in (("class", True), ("instance", False)):
        first, second, third = hues(wanted)
        assert np.allclose(first, second, atol=0.02) == same
        assert np.allclose(first, third, atol=0.02) == (same and classes == 1)


def test_draw_instances__refuses_other_colours() -> None:
    with pytest.raises(OptionError, match="colours: expected one of auto, class, instance, got rainbow"):
        draw_instances(grey((10, 10)), boxes((10, 10), (2, 2, 5, 5)), colours="rainbow")
