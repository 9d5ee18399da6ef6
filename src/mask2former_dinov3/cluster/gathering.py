"""Results of batches that come in any order, some of them twice or never, to shards that are whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .shards import KINDS, Found, ShardFolder, found_of, shard_name

SHOWN = 10


@dataclass(frozen=True)
class Batches:
    """Images (an Arrow array of URIs) cut into shards and those into batches, which are numbered from 0."""

    images: Any
    shard_size: int
    batch_size: int

    @property
    def in_shard(self) -> int:
        """Batches of a whole shard."""
        return -(-self.shard_size // self.batch_size)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.shard_size)
        return whole * self.in_shard - (-rest // self.batch_size)

    def images_of(self, number: int) -> list[str]:
        """The images of a batch."""
        shard, place = divmod(number, self.in_shard)
        start = shard * self.shard_size + place * self.batch_size
        end = min(start + self.batch_size, (shard + 1) * self.shard_size)
        found: list[str] = self.images[start:end].to_pylist()
        return found

    def of_shard(self, shard: int) -> range:
        """The batches of a shard."""
        return range(shard * self.in_shard, min((shard + 1) * self.in_shard, len(self)))


@dataclass
class BatchSummary:
    """What a job did. earlier: images done before it; failures: the first (image, reason) of this time."""

    output: str
    images: int = 0
    instances: int = 0
    earlier: int = 0
    failed: int = 0
    failed_earlier: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)

    def text(self) -> str:
        """For people: counts and the first failures."""
        lines = [f"{self.instances} instances in {self.images} images; results in {self.output}"]
        if self.earlier:
            lines.append(f"{self.earlier} images were done before")
        if self.failed_earlier:
            lines.append(f"{self.failed_earlier} failed before; --retry-failed tries them again")
        if self.failed:
            lines.append(f"{self.failed} failed (all of them are in {self.output}/failures):")
            lines.extend(f"  {reason}" for _, reason in self.failures)
        return "\n".join(lines)


class Gathering:
    """Takes results until every shard is written; a batch that comes again is passed over.

    bar: a tqdm over images.
    """

    def __init__(self, batches: Batches, folder: ShardFolder, summary: BatchSummary, bar: Any) -> None:
        self.batches = batches
        self.folder = folder
        self.summary = summary
        self.bar = bar
        self.is_missing = np.ones(len(batches), dtype=bool)
        self.open: dict[int, dict[int, Found]] = {}

    def missing(self) -> NDArray[np.int64]:
        """Numbers of the batches without results."""
        return np.flatnonzero(self.is_missing)

    def add(self, number: int, found: Found) -> None:
        """Take the results of a batch, and write its shard if it was the last one of it."""
        if not self.is_missing[number]:
            return
        self.is_missing[number] = False
        self.bar.update(found.images.num_rows + found.failures.num_rows)
        shard = number // self.batches.in_shard
        parts = self.open.setdefault(shard, {})
        parts[number] = found
        numbers = self.batches.of_shard(shard)
        if len(parts) == len(numbers):
            self._write([self.batches.images_of(one) for one in numbers], [parts[one] for one in numbers])
            del self.open[shard]

    def give_up(self, reason: str) -> None:
        """What is still missing has failed."""
        for number in self.missing().tolist():
            self.add(number, found_of([], [(image, f"{image}: {reason}") for image in self.batches.images_of(number)]))

    def _write(self, images: list[list[str]], parts: list[Found]) -> None:
        import pyarrow as pa

        whole = Found(**{kind: pa.concat_tables([getattr(part, kind) for part in parts]) for kind in KINDS})
        self.folder.write(shard_name([image for some in images for image in some]), whole)
        summary = self.summary
        summary.images += whole.images.num_rows
        summary.instances += whole.instances.num_rows
        summary.failed += whole.failures.num_rows
        space = SHOWN - len(summary.failures)
        summary.failures.extend((row["image"], row["reason"]) for row in whole.failures.slice(0, space).to_pylist())
