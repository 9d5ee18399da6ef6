"""Collects batch results, which may arrive out of order, twice or never, and writes a shard once it is complete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..inference.limit_notes import LimitNotes
from ..instances import Unreported
from .shards import KINDS, LEFT_OUT, ShardFolder, ShardTables, name_shard, tables_of

if TYPE_CHECKING:
    import pyarrow as pa

FAILURES_SHOWN = 10


@dataclass(frozen=True)
class Batches:
    """Images (URIs) cut into shards, and each shard into batches. Batches are numbered from 0 over all shards."""

    images: pa.LargeStringArray
    shard_size: int
    batch_size: int

    @property
    def in_shard(self) -> int:
        """Number of batches in a complete shard."""
        return -(-self.shard_size // self.batch_size)

    def __len__(self) -> int:
        complete, rest = divmod(len(self.images), self.shard_size)
        return complete * self.in_shard - (-rest // self.batch_size)

    def images_of(self, number: int) -> list[str]:
        """The images of a batch."""
        shard, place = divmod(number, self.in_shard)
        start = shard * self.shard_size + place * self.batch_size
        end = min(start + self.batch_size, (shard + 1) * self.shard_size)
        names: list[str] = self.images[start:end].to_pylist()
        return names

    def of_shard(self, shard: int) -> range:
        """The batches of a shard."""
        return range(shard * self.in_shard, min((shard + 1) * self.in_shard, len(self)))


@dataclass
class BatchSummary:
    """What a job did. earlier: images done by earlier jobs. failures: the first (image, reason) of this job.

    threshold: one line on the threshold in use. limits: what is not among the instances; max_detections, tiles: as
    used.
    """

    output: str
    images: int = 0
    instances: int = 0
    earlier: int = 0
    failed: int = 0
    failed_earlier: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    threshold: str = ""
    limits: LimitNotes = field(default_factory=LimitNotes)
    max_detections: int = 0
    tiles: bool = False

    def text(self) -> str:
        """For people: counts and the first failures."""
        lines = [f"{self.instances} instances in {self.images} images; results in {self.output}", self.threshold]
        lines.extend(f"note: {line}" for line in self.limits.lines(self.max_detections, tiles=self.tiles))
        if self.earlier:
            lines.append(f"{self.earlier} images were done before")
        if self.failed_earlier:
            lines.append(f"{self.failed_earlier} failed before; --retry-failed tries them again")
        if self.failed:
            lines.append(f"{self.failed} failed (all of them are in {self.output}/failures):")
            lines.extend(f"  {reason}" for _, reason in self.failures)
        return "\n".join(lines)


class Gathering:
    """Takes results until every shard is written; a batch that arrives again is ignored.

    report_progress: called with the number of images of each batch that arrives.
    """

    def __init__(
        self,
        batches: Batches,
        folder: ShardFolder,
        summary: BatchSummary,
        report_progress: Callable[[int], object],
    ) -> None:
        self.batches = batches
        self.folder = folder
        self.summary = summary
        self.report_progress = report_progress
        self.is_missing = np.ones(len(batches), dtype=bool)
        self.open: dict[int, dict[int, ShardTables]] = {}

    def missing(self) -> NDArray[np.int64]:
        """Numbers of the batches without results."""
        return np.flatnonzero(self.is_missing)

    def add(self, number: int, tables: ShardTables) -> None:
        """Take the results of a batch, and write its shard if no other batch of it is missing."""
        if not self.is_missing[number]:
            return
        self.is_missing[number] = False
        self.report_progress(tables.images.num_rows + tables.failures.num_rows)
        shard = number // self.batches.in_shard
        parts = self.open.setdefault(shard, {})
        parts[number] = tables
        numbers = self.batches.of_shard(shard)
        if len(parts) == len(numbers):
            self._write([self.batches.images_of(one) for one in numbers], [parts[one] for one in numbers])
            del self.open[shard]

    def give_up(self, reason: str) -> None:
        """Record the images of all missing batches as failed."""
        for number in self.missing().tolist():
            self.add(number, tables_of([], [(image, f"{image}: {reason}") for image in self.batches.images_of(number)]))

    def _write(self, images: list[list[str]], parts: list[ShardTables]) -> None:
        import pyarrow as pa

        tables = ShardTables(**{kind: pa.concat_tables([getattr(part, kind) for part in parts]) for kind in KINDS})
        self.folder.write(name_shard([image for some in images for image in some]), tables)
        summary = self.summary
        summary.images += tables.images.num_rows
        summary.instances += tables.instances.num_rows
        for row in tables.images.select(LEFT_OUT).to_pylist():
            summary.limits.add(Unreported(**row))
        summary.failed += tables.failures.num_rows
        space = FAILURES_SHOWN - len(summary.failures)
        summary.failures.extend((row["image"], row["reason"]) for row in tables.failures.slice(0, space).to_pylist())
