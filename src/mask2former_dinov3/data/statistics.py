"""Count what a split holds: images, instances per class and per size (COCO's three bins), image sizes."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import asdict, dataclass

from .coco import CocoData

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
    per_class = Counter({category.name: 0 for category in data.categories})
    per_size = {"small": 0, "medium": 0, "large": 0}
    per_image = []
    crowd_regions = 0
    for record in data.images:
        targets = [annotation for annotation in record.annotations if not annotation.iscrowd]
        crowd_regions += len(record.annotations) - len(targets)
        per_image.append(len(targets))
        for annotation in targets:
            per_class[data.categories[annotation.label].name] += 1
            size = "small" if annotation.area < SMALL else "medium" if annotation.area < MEDIUM else "large"
            per_size[size] += 1
    sizes = Counter(f"{record.height} x {record.width}" for record in data.images)
    return Statistics(
        images=len(data.images),
        images_without_instances=per_image.count(0),
        instances=sum(per_image),
        crowd_regions=crowd_regions,
        per_class=dict(per_class),
        per_size=per_size,
        image_sizes=dict(sizes.most_common()),
        instances_per_image_median=float(statistics.median(per_image)) if per_image else 0.0,
        instances_per_image_most=max(per_image, default=0),
    )


def _list_first(counts: dict[str, int]) -> str:
    """Name and count of the first entries, and how many more there are."""
    shown = ", ".join(f"{name}: {count}" for name, count in list(counts.items())[:_SHOWN])
    more = len(counts) - _SHOWN
    return f"{shown}, and {more} more" if more > 0 else shown or "none"
