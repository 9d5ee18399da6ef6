"""Count what a split holds: images, instances per class and per size (COCO's three bins), image sizes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np

from .records import CocoData

SMALL, MEDIUM = 32**2, 96**2
"""COCO's limits in square pixels of the original image: small below SMALL, large from MEDIUM on."""

_SHOWN = 12  # image sizes and classes named in the text


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts over one split. Instances are those that training uses, without crowd regions; areas are the file's."""

    images: int
    images_without_instances: int
    instances: int
    crowd_regions: int
    per_class: dict[str, int]
    per_size: dict[str, int]  # small, medium, large
    image_sizes: dict[str, int]  # "height x width", most frequent first
    instances_per_image_median: float
    instances_per_image_most: int

    def to_json(self) -> dict[str, object]:
        """The counts as a JSON object."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The counts as lines of text."""
        sizes = ", ".join(f"{name} {count}" for name, count in self.per_size.items())
        return [
            f"images: {self.images}, {self.images_without_instances} of them without instances",
            f"instances: {self.instances} (and {self.crowd_regions} crowd regions); per image: median "
            f"{self.instances_per_image_median:g}, maximum {self.instances_per_image_most}",
            f"instances by size (COCO's areas): {sizes}",
            f"instances by class: {_list_first(self.per_class)}",
            f"image sizes (height x width): {_list_first(self.image_sizes)}",
        ]


def statistics_of(data: CocoData) -> Statistics:
    """Count a split's records."""
    columns = data.images.columns
    everything, _ = data.images.instance_rows(crowds=True)
    rows, _ = data.images.instance_rows()
    per_image = data.images.instance_counts()
    per_class = np.bincount(columns.labels[rows], minlength=len(data.categories)).tolist()
    small, medium, large = np.bincount(np.digitize(columns.areas[rows], (SMALL, MEDIUM)), minlength=3).tolist()
    sizes = Counter(f"{height} x {width}" for height, width in columns.sizes[data.images.rows].tolist())
    return Statistics(
        images=len(per_image),
        images_without_instances=int((per_image == 0).sum()),
        instances=len(rows),
        crowd_regions=len(everything) - len(rows),
        per_class={category.name: count for category, count in zip(data.categories, per_class, strict=True)},
        per_size={"small": small, "medium": medium, "large": large},
        image_sizes=dict(sizes.most_common()),
        instances_per_image_median=float(np.median(per_image)) if len(per_image) else 0.0,
        instances_per_image_most=int(per_image.max(initial=0)),
    )


def _list_first(counts: dict[str, int]) -> str:
    """Name and count of the first entries, and how many more there are."""
    shown = ", ".join(f"{name}: {count}" for name, count in list(counts.items())[:_SHOWN])
    more = len(counts) - _SHOWN
    return f"{shown}, and {more} more" if more > 0 else shown or "none"
