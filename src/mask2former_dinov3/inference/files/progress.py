"""Remember on disk which images a run has finished, so that a stopped run continues where it was.

One JSON object per line: first the settings, then finished rows of tiles of large images; for each finished image its
results and, after them, one line that says so and where the results are.
Lines are only appended; the last line is dropped if a kill cut it short. In memory are the positions of the lines.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict

import torch

from ...data.coco_types import CocoRle
from ...instances import Instances, Unreported
from ..network import Network

logger = logging.getLogger(__name__)

Categories = tuple[tuple[int, str], ...]


class FinishedImage(TypedDict):
    """Of a finished image, besides its results: size in pixels, number of instances, what is left out."""

    height: int
    width: int
    detections: int
    left_out: list[float]


class Progress:
    """The file at `path`. Its contents are reused only if it was written with the same `settings`.

    Otherwise they are discarded with a warning. Images are identified by keys (see `key_of`). Close it (or leave its
    `with` block) before another reader opens the file.
    """

    def __init__(self, path: Path, settings: Mapping[str, object]) -> None:
        self.path = path
        self._finished: dict[str, int] = {}  # key -> position of its line
        self._rows: dict[str, list[int]] = {}  # key -> positions of its rows of tiles
        if path.is_symlink():  # writing would follow it
            path.unlink()
        path.touch()
        self._file = path.open("r+b")
        settings = json.loads(json.dumps(settings))
        end = self._read(settings)
        self._file.truncate(end)
        if end == 0:
            self._append({"settings": settings})
        elif self._finished or self._rows:
            logger.info(
                "continuing an earlier run: %d images are finished%s",
                len(self._finished),
                f", {len(self._rows)} in part" if self._rows else "",
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._finished

    def finish(self, key: str, entry: FinishedImage, results: Iterable[Sequence[Mapping[str, object]]]) -> None:
        """Record that an image is finished, with its COCO results in parts of any length."""
        places = [self._append({"results": some}) for some in results]
        self._finished[key] = self._append({"key": key, "image": entry, "results": places})
        os.fsync(self._file.fileno())  # the image's own files were flushed before: none is missing after a power cut
        self._rows.pop(key, None)

    def entry(self, key: str) -> FinishedImage:
        """The entry that `finish` recorded."""
        found: FinishedImage = self._at(self._finished[key])["image"]
        return found

    def results(self, key: str) -> Iterator[dict[str, object]]:
        """The COCO results that `finish` recorded, one after the other."""
        for place in self._at(self._finished[key])["results"]:
            yield from self._at(place)["results"]

    def rows(self, key: str, categories: Categories) -> Iterator[list[Instances]]:
        """The finished rows of tiles of an unfinished image, from the top."""
        for place in self._rows.get(key, ()):
            yield [
                Instances(
                    height,
                    width,
                    tuple(CocoRle(size=[height, width], counts=one) for one in counts),
                    labels,
                    scores,
                    categories,
                    restore_left_out(left_out),
                )
                for (height, width), counts, labels, scores, left_out in self._at(place)["row"]
            ]

    def count_rows(self, key: str) -> int:
        """The number of rows that `rows` yields."""
        return len(self._rows.get(key, ()))

    def keep_rows(self, key: str, rows: Iterator[list[Instances]]) -> Iterator[list[Instances]]:
        """Yield the same rows, and record each one before it is yielded."""
        for row in rows:
            stored = [
                (
                    [one.height, one.width],
                    [rle["counts"] for rle in one.rles],
                    one.labels.tolist(),
                    one.short_scores,
                    store_left_out(one.left_out),
                )
                for one in row
            ]
            self._rows.setdefault(key, []).append(self._append({"key": key, "row": stored}))
            yield row

    def _append(self, line: Mapping[str, object]) -> int:
        """Write a line; returns its position."""
        place = self._file.seek(0, 2)
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        return place

    def _at(self, place: int) -> Any:
        self._file.seek(place)
        return json.loads(self._file.readline())

    def _read(self, settings: Mapping[str, object]) -> int:
        """Find the positions of the lines; returns the end of the last complete line, or 0 to start again."""
        place = 0
        for raw in self._file:
            try:
                line = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                line = None
            if not isinstance(line, dict):
                break
            if place == 0:
                earlier = line.get("settings")
                if earlier != settings:
                    known = earlier if isinstance(earlier, dict) else {}
                    changed = [name for name, value in settings.items() if name not in known or known[name] != value]
                    logger.warning("starting again: an earlier, unfinished run had another %s", ", ".join(changed))
                    return 0
            elif "image" in line:
                self._finished[line["key"]] = place
                self._rows.pop(line["key"], None)
            elif "row" in line:
                self._rows.setdefault(line["key"], []).append(place)
            place += len(raw)
        return place


def store_left_out(left_out: Unreported) -> list[float]:
    """The counts as JSON has them."""
    return list(astuple(left_out))


def restore_left_out(stored: Sequence[float]) -> Unreported:
    """The inverse of `store_left_out`."""
    limit, full, copies, best_score = stored
    return Unreported(int(limit), int(full), int(copies), best_score)


def key_of(path: Path, name: str) -> str:
    """The key of an image file: another file, or the same file with new content, has another key."""
    try:
        status = path.stat()
    except OSError:  # reading the file will report it
        return json.dumps([str(path), name])
    return json.dumps([str(path), name, status.st_size, status.st_mtime_ns])


def fingerprint(model: Network, file: Path | None) -> str:
    """A checksum of the weights: those in memory, or those in the .onnx file, which has none in memory."""
    found = zlib.crc32(repr(model.config).encode())
    for name, tensor in model.state_dict().items():
        found = zlib.crc32(name.encode(), found)
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found = zlib.crc32(values.data, found)
    if file is not None and file.is_file():
        with file.open("rb") as opened:
            while part := opened.read(2**24):
                found = zlib.crc32(part, found)
    return f"{found:08x}"
