"""Against imbalanced classes: how often to show an image, and how much an instance of a class weighs in the loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import OptionError, suggest
from .array_types import Floats
from .coco import CocoData
from .faults import count_of
from .statistics import statistics_of

BETA = 0.999
"""Of the effective number of samples: 0.999 lies in the middle of the values that the paper tries (0.9 to 0.9999)."""


def image_repeat_factors(data: CocoData, threshold: float) -> Floats:
    """How often to show each image on average, (I,), of 1 or more (LVIS, arXiv:1908.03195, appendix B).

    f is the fraction of images that have an instance of a class, r = max(1, sqrt(threshold / f)) the factor of the
    class, and the factor of an image is the largest r of its classes, 1 without instances. Crowd regions do not count.
    As `RepeatFactorTrainingSampler.repeat_factors_from_category_frequency` of detectron2.
    """
    rows, places = data.images.instance_rows()
    labels = data.images.columns.labels[rows]
    num_classes = len(data.categories)
    pairs = np.unique(places * num_classes + labels)  # an image and a class of it
    images, classes = np.divmod(pairs, num_classes)
    frequency = np.bincount(classes, minlength=num_classes) / max(len(data.images), 1)
    of_class = np.maximum(1.0, np.sqrt(threshold / np.maximum(frequency, 1e-300)))
    factors = np.ones(len(data.images))
    np.maximum.at(factors, images, of_class[classes])
    return factors


def automatic_class_weights(data: CocoData) -> dict[str, float]:
    """Class name -> weight by the effective number of samples (Class-Balanced Loss, arXiv:1901.05555, section 4).

    A class with n instances gets (1 - BETA) / (1 - BETA ** n), times one number for all so that the mean over the
    instances is 1 (the paper: over the classes); rounded to 4 digits. A class without instances, which is never a
    target, gets 1.
    """
    counts = np.array(list(statistics_of(data).per_class.values()), np.float64)
    weights = np.ones(len(counts))
    seen = counts > 0
    raw = (1 - BETA) / (1 - BETA ** counts[seen])
    weights[seen] = raw * counts[seen].sum() / (raw * counts[seen]).sum()
    return {one.name: float(f"{weight:.4g}") for one, weight in zip(data.categories, weights, strict=True)}


def weights_by_label(weights: Mapping[str, float], data: CocoData) -> list[float]:
    """The weight of each label, (K,); a class that `weights` does not name has 1.

    Raises OptionError for a name that is no class of the data.
    """
    names = [category.name for category in data.categories]
    for name in weights:
        if name not in names:
            expected = f"names of the {count_of(len(names), 'class', 'classes')} of the training data"
            raise OptionError("class_weights", expected, f'"{name}"', suggest(name, names, "see check-data for them"))
    return [weights.get(name, 1.0) for name in names]
