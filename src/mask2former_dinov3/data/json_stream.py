"""Read a large JSON object in pieces: the lists in it, a few megabytes of entries at a time.

Read as a whole, the annotations of COCO's size take 3 GB of Python objects. A piece ends where an entry ends. That is
not guessed: `[` + piece + `]` must be valid JSON, which it is only if the piece begins and ends between entries.
"""

from __future__ import annotations

import codecs
import gc
import json
import re
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import orjson
from pydantic_core import from_json

PIECE = 2**18  # bytes; a piece of this size takes about 2.5 MB as Python objects, which fits a processor's cache
LARGE = 32 * 2**20  # bytes from which reading in pieces is worth it

_BETWEEN = re.compile(rb"\}\s*,\s*\{")  # two entries, if not inside one
_NO_SPACE = re.compile(rb"[^ \t\n\r]")
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_MANY_DIGITS = b"0" * 19  # the shortest integers beyond 64 bits have as many


class NotStreamableError(ValueError):
    """A file that is not plainly one UTF-8 JSON object; the reader of whole files says what it is."""


@contextmanager
def without_collector() -> Iterator[None]:
    """Pause Python's search for cycles: entries have none, and it goes through millions of them, again and again."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def is_large(path: Path) -> bool:
    """Whether a file is worth reading in pieces."""
    return path.is_file() and path.stat().st_size >= LARGE


def parse_piece(text: bytes) -> object:
    """A JSON text as `json.loads` reads it. Raises ValueError or RecursionError for some that `json.loads` reads.

    orjson takes a third of the time of `json.loads`. What it refuses or would read otherwise (NaN, numbers beyond any
    float, integers beyond 64 bits) is left to a reader that takes two thirds. What both refuse, such as halves of
    surrogate pairs, is read value by value.
    """
    if _MANY_DIGITS not in text.translate(_DIGITS_AS_ZEROS):
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(text)
    return from_json(text)


def stream_lists(path: Path, lists: Container[str], piece: int = PIECE) -> Iterator[tuple[str, list[object]]]:
    """(key, entries) of the lists of objects under these top-level keys, in file order, each in pieces.

    An empty list comes as one empty piece. Raises OSError, and NotStreamableError, possibly after some pieces, for a
    file that is not one JSON object in UTF-8 with each key once and lists of objects under these keys.
    """
    with path.open("rb") as file:
        reader = _Reader(file.read, piece)
        reader.take(b"{")
        seen: set[str] = set()
        while True:
            key = reader.value()
            if not isinstance(key, str) or key in seen:
                raise NotStreamableError(f"key {key!r}")
            seen.add(key)
            reader.take(b":")
            if key in lists:
                for entries in reader.take_list():
                    yield key, entries
            else:
                reader.value()
            if reader.take(b",}") == b"}":
                break
        if reader.peek():
            raise NotStreamableError("more after the object")


class _Reader:
    """A window over a file: bytes that are read and not yet taken."""

    def __init__(self, read: Callable[[int], bytes], piece: int) -> None:
        self._read = read
        self._piece = piece
        self._bytes = b""
        self._at = 0

    def _fill(self, wanted: int = 0) -> None:
        """Read on, a piece or as many bytes as are wanted. Raises NotStreamableError at the end of the file."""
        more = self._read(max(self._piece, wanted))
        if not more:
            raise NotStreamableError("the file ends early")
        self._bytes = self._bytes[self._at :] + more
        self._at = 0

    def peek(self) -> bytes:
        """The next byte that is not a space, left where it is; empty at the end of the file."""
        while True:
            if found := _NO_SPACE.search(self._bytes, self._at):
                self._at = found.start()
                return found[0]
            self._at = len(self._bytes)
            try:
                self._fill()
            except NotStreamableError:
                return b""

    def take(self, expected: bytes) -> bytes:
        """Take the next byte that is not a space. Raises NotStreamableError unless it is one of those expected."""
        found = self.peek()
        if not found or found not in expected:
            raise NotStreamableError(f"expected one of {expected!r}, got {found!r}")
        self._at += 1
        return found

    def value(self) -> object:
        """Take a whole value of any kind."""
        if not self.peek():
            raise NotStreamableError("the file ends early")
        size = 2**16
        while True:
            cut = codecs.getincrementaldecoder("utf-8")()  # the last character may be cut
            try:
                text = cut.decode(self._bytes[self._at : self._at + size])
                value, end = json.JSONDecoder().raw_decode(text)
                if end < len(text):  # a number that ends with the window may go on
                    self._at += len(text[:end].encode())
                    return value
            except json.JSONDecodeError:
                pass
            except (ValueError, RecursionError) as error:  # no UTF-8, a number of thousands of digits, deep nesting
                raise NotStreamableError(str(error)) from error
            if self._at + size >= len(self._bytes):
                self._fill(size)  # not piece by piece: every one would be decoded with all before it
            size *= 8

    def take_list(self) -> Iterator[list[object]]:
        """Take a list of objects, in pieces."""
        self.take(b"[")
        if self.peek() == b"]":
            self.take(b"]")
            yield []
            return
        while True:
            if self.peek() != b"{":
                raise NotStreamableError("an entry that is not an object")
            yield self._piece_of_objects() or [self.value()]
            if self.take(b",]") == b"]":
                return

    def _piece_of_objects(self) -> list[object]:
        """As many whole objects as the window holds; none if it does not hold one and the beginning of the next."""
        if len(self._bytes) - self._at < self._piece:
            with suppress(NotStreamableError):
                self._fill()
        end, tries = self._last_boundary(len(self._bytes)), 0
        while end > 0:
            with suppress(ValueError, RecursionError):
                entries = parse_piece(b"[" + self._bytes[self._at : end] + b"]")
                self._at = end
                return cast(list[object], entries)
            # The boundary is inside an object, or behind the end of the list, which may be far before it.
            tries += 1
            end = self._last_boundary(end - 1 if tries < 3 else (self._at + end) // 2)
        return []

    def _last_boundary(self, stop: int) -> int:
        """The end of the last `}` before a `, {` in the window up to `stop`; 0 if there is none."""
        reach = 4096
        while True:
            start = max(self._at, stop - reach)
            matches = list(_BETWEEN.finditer(self._bytes, start, stop))
            if matches:
                return matches[-1].start() + 1
            if start == self._at:
                return 0
            reach *= 4
