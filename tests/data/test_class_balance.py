"""Repeat factors of images and weights of classes, against values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mask2former_dinov3.data.class_balance import automatic_class_weights, image_repeat_factors, weights_by_label
from mask2former_dinov3.data.coco import Annotation, Category, CocoData, ImageRecord
from mask2former_dinov3.errors import OptionError
from support.coco import make_table

CATEGORIES = (Category(3, "bar"), Category(7, "disc"), Category(9, "absent"))
TRIANGLE = [np.array([[1.0, 1], [9, 1], [9, 9]])]


def data_of(*images: str) -> CocoData:
    """Images of instances by letter: b a bar, d a disc, B a crowd region of bars."""

    def instance(id: int, letter: str) -> Annotation:
        label = "bd".index(letter.lower())
        return Annotation(id, label, CATEGORIES[label].id, TRIANGLE, letter.isupper(), (1.0, 1.0, 8.0, 8.0), 32.0)

    records = []
    for number, letters in enumerate(images):
        own = [instance(10_000 * number + place, letter) for place, letter in enumerate(letters)]
        records.append(ImageRecord(number, f"{number}.png", Path(f"{number}.png"), 10, 10, own))
    return CocoData(Path("a.json"), CATEGORIES, make_table(records, CATEGORIES))


def test_image_repeat_factors__are_those_of_the_rarest_class() -> None:
    """Bars in 3 of 4 images, discs in 1: r = sqrt(0.75 / f) is 1 and sqrt(3); a crowd region is no instance."""
    found = image_repeat_factors(data_of("bbb", "bd", "b", "B"), 0.75)
    np.testing.assert_allclose(found, [1, 3**0.5, 1, 1])


def test_image_repeat_factors__below_all_frequencies_nothing_is_repeated() -> None:
    assert image_repeat_factors(data_of("b", "d", ""), 0.3).tolist() == [1, 1, 1]


def test_automatic_class_weights__follow_the_effective_numbers_of_samples() -> None:
    """E = (1 - 0.999 ** n) / 0.001 is 1.999 for 2 and 1 for 1 instance: weights 3 / 2 / E, whose mean is 1."""
    found = automatic_class_weights(data_of("bb", "d", "B"))
    assert found == {"bar": pytest.approx(1.5 / 1.999, rel=1e-3), "disc": pytest.approx(1.5, rel=1e-3), "absent": 1.0}
    assert (2 * found["bar"] + found["disc"]) / 3 == pytest.approx(1, abs=1e-3)


def test_automatic_class_weights__grow_slower_than_the_inverse_frequency() -> None:
    """With 2,000 and 20 instances: E is 864.8 and 19.81, a ratio of 43.6 instead of 100."""
    found = automatic_class_weights(data_of("b" * 2000, "d" * 20))
    assert found["disc"] / found["bar"] == pytest.approx(864.8 / 19.81, rel=1e-3)


def test_weights_by_label__unnamed_classes_weigh_1_and_unknown_ones_are_refused() -> None:
    assert weights_by_label({"disc": 5.0}, data_of("b")) == [1, 5, 1]
    expected = r'^class_weights: expected names of the 3 classes of the training data, got "dics"; nearest is disc$'
    with pytest.raises(OptionError, match=expected):
        weights_by_label({"dics": 5.0}, data_of("b"))
