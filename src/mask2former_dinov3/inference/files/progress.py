"""What a run over many images has done so far, kept on disk, so that a stopped one goes on where it was.

One JSON object a line: first the settings, then finished rows of tiles of large images, and of each finished image its
results and, after them, that it is finished and where they are.
Lines are only ever added; one that a kill has cut short is dropped. In memory is where each line begins.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from ...data.coco_types import CocoRle
from ...instances import Instances

logger = logging.getLogger(__name__)

Categories = tuple[tuple[int, str], ...]


class Progress:
    """The file at `path`. What it holds counts if it was made with the same `settings`, else it starts anew, aloud.

    An image goes by its key (see `key_of`). Close it (or leave its `with` block) before the file is read by others.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self._finished: dict[str, int] = {}  # where the line of each image begins
        self._rows: dict[str, list[int]] = {}
        if path.is_symlink():  # not to write where it leads
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
                "going on with what an earlier run has left: %d images are done%s",
                len(self._finished),
                f", {len(self._rows)} in part" if self._rows else "",
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._finished

    def finish(self, key: str, entry: dict[str, Any], results: Iterable[list[dict[str, Any]]]) -> None:
        """An image is done; `entry` and its results, some at a time, are what is to be known of it later."""
        places = [self._append({"results": some}) for some in results]
        self._finished[key] = self._append({"key": key, "image": entry, "results": places})
        self._rows.pop(key, None)

    def entry(self, key: str) -> dict[str, Any]:
        """What `finish` was given."""
        found: dict[str, Any] = self._at(self._finished[key])["image"]
        return found

    def results(self, key: str) -> Iterator[dict[str, Any]]:
        """The results that `finish` was given, one after the other."""
        for place in self._at(self._finished[key])["results"]:
            yield from self._at(place)["results"]

    def rows(self, key: str, categories: Categories) -> Iterator[list[Instances]]:
        """The rows of tiles that an image has already, from the top."""
        for place in self._rows.get(key, ()):
            yield [
                Instances(
                    height,
                    width,
                    tuple(CocoRle(size=[height, width], counts=one) for one in counts),
                    labels,
                    scores,
                    categories,
                )
                for (height, width), counts, labels, scores in self._at(place)["row"]
            ]

    def count_rows(self, key: str) -> int:
        """How many `rows` gives."""
        return len(self._rows.get(key, ()))

    def keep_rows(self, key: str, rows: Iterator[list[Instances]]) -> Iterator[list[Instances]]:
        """The same rows, each kept as it passes."""
        for row in rows:
            stored = [
                (
                    [one.height, one.width],
                    [rle["counts"] for rle in one.rles],
                    one.labels.tolist(),
                    one.short_scores,
                )
                for one in row
            ]
            self._rows.setdefault(key, []).append(self._append({"key": key, "row": stored}))
            yield row

    def _append(self, line: dict[str, Any]) -> int:
        place = self._file.seek(0, 2)
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        return place

    def _at(self, place: int) -> Any:
        self._file.seek(place)
        return json.loads(self._file.readline())

    def _read(self, settings: dict[str, Any]) -> int:
        """Learn where the lines are; returns the place behind the last whole one, 0 to start anew."""
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
                    changed = [
                        name
                        for name in settings
                        if not isinstance(earlier, dict) or earlier.get(name) != settings[name]
                    ]
                    logger.warning("starting anew: an earlier, unfinished run had another %s", ", ".join(changed))
                    return 0
            elif "image" in line:
                self._finished[line["key"]] = place
                self._rows.pop(line["key"], None)
            elif "row" in line:
                self._rows.setdefault(line["key"], []).append(place)
            place += len(raw)
        return place


def key_of(path: Path, name: str) -> str:
    """What an image goes by: another file, or the same one changed, has another key."""
    try:
        status = path.stat()
    except OSError:  # reading it will say so
        return json.dumps([str(path), name])
    return json.dumps([str(path), name, status.st_size, status.st_mtime_ns])


def fingerprint(model: torch.nn.Module, file: Path | None) -> str:
    """A number that changes with the weights: those in memory, or the file of a model that has none there."""
    found = zlib.crc32(repr(getattr(model, "config", None)).encode())
    for name, tensor in model.state_dict().items():
        found = zlib.crc32(name.encode(), found)
        values: np.ndarray[Any, Any] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found = zlib.crc32(values.data, found)
    if file is not None and file.is_file():
        with file.open("rb") as opened:
            while part := opened.read(2**24):
                found = zlib.crc32(part, found)
    return f"{found:08x}"
