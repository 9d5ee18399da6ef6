"""From the inputs of `batch-predict` to one list of images: files, folders, patterns, text lists and Parquet files.

Every name may be a path or a URI that fsspec knows (s3://, gs://, https://, ...). The list is an Arrow array: ten
million URIs of 70 characters take 0.8 GB, as Python strings they would take twice that.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ..data.file_kinds import HEAD, IMAGE_SUFFIXES
from ..data.image_folders import PassedOver, choose_images
from ..errors import DatasetError, UserError, mismatch

if TYPE_CHECKING:
    import pyarrow as pa
    from fsspec import AbstractFileSystem

logger = logging.getLogger(__name__)

NAMES_PER_CHUNK = 100_000  # as Python strings at any time
COLUMNS = ("image", "uri", "url", "path")  # tried in this order
UNKNOWN_LISTS = frozenset(
    {".arrow", ".csv", ".feather", ".json", ".jsonl", ".list", ".lst", ".ndjson", ".tsv", ".xls", ".xlsx", ".xml"}
    | {".yaml", ".yml"}
)
ACCEPTED_INPUTS = "an image, a folder, a pattern, or a list of images (.txt with one per line, or .parquet)"


def filesystem_of(uri: str) -> tuple[AbstractFileSystem, str]:
    """(file system of fsspec, path in it). Raises UserError for a protocol that is unknown or not installed."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:  # fsspec says what to install, such as s3fs
        advice = f"{error}, with pip on every machine of the cluster"
        raise UserError(f"{uri}: {mismatch('a protocol whose package is installed', 'none', advice)}") from error
    except ValueError as error:
        raise UserError(f"{uri}: {mismatch('a path, or a URI that fsspec knows', f'an error ({error})')}") from error
    return filesystem, str(path)


def list_images(inputs: Sequence[str], column: str | None = None) -> pa.LargeStringArray:
    """URIs of all images of the inputs, each once, in the order of the inputs.

    An input is an image, a folder (searched for image files at any depth), a pattern, a text file (`.txt`) with one
    image per line, or a Parquet file or folder (`.parquet`) with the images in `column` (None: its only column of
    strings, or the one called image, uri, url or path). Names in lists that are not absolute are relative to the folder
    of the list. Local images become absolute paths. Whether listed images exist is not checked. Raises DatasetError for
    an input without images, or of another kind.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    chunks: list[pa.Array] = []
    for given in inputs:
        before = len(chunks)
        names = iter(_images_of(given, column))
        while some := list(islice(names, NAMES_PER_CHUNK)):
            chunks.append(pa.array(some, pa.large_string()))
        if len(chunks) == before:
            raise DatasetError(f"{given}: {mismatch('at least one image', 'none')}")
    return pc.unique(pa.chunked_array(chunks, pa.large_string()))


def _images_of(given: str, column: str | None) -> Iterator[str]:
    filesystem, path = filesystem_of(given)
    try:
        matches = [path] if filesystem.exists(path) else []
        if matches and (suffix := PurePosixPath(path).suffix.lower()) in UNKNOWN_LISTS and not filesystem.isdir(path):
            raise DatasetError(f"{given}: {mismatch(ACCEPTED_INPUTS, f'a {suffix} file')}")
        if not matches and glob.has_magic(path):
            matches = sorted(filesystem.glob(path))
        if not matches:
            raise DatasetError(f"{given}: {mismatch(ACCEPTED_INPUTS, 'nothing of that name')}")
        for match in map(str, matches):
            suffix = PurePosixPath(match).suffix.lower()
            if suffix in (".txt", ".parquet"):
                parent = _uri_of(filesystem, match.rpartition("/")[0])
                names = _read_lines(filesystem, match) if suffix == ".txt" else _read_cells(filesystem, match, column)
                yield from (_resolve(parent, name) for name in names)
            elif suffix not in IMAGE_SUFFIXES and filesystem.isdir(match):
                yield from (
                    _uri_of(filesystem, f"{match.rstrip('/')}/{name}") for name in _images_below(filesystem, match)
                )
            else:
                yield _uri_of(filesystem, match)
    except (DatasetError, MemoryError):
        raise
    except Exception as error:  # clients of object stores raise errors of their own classes
        got = f"an error ({error})"
        raise DatasetError(f"{given}: {mismatch('an input that can be read', got)}") from error


def _images_below(filesystem: AbstractFileSystem, folder: str) -> Iterator[str]:
    """The names below a folder of the images in it at any depth; how many files are passed over is logged."""
    below = folder.rstrip("/") + "/"

    def read_head(name: str) -> bytes:
        with filesystem.open(below + name, "rb") as file:
            return bytes(file.read(HEAD))

    passed_over = PassedOver()
    names = sorted(str(file).removeprefix(below) for file in filesystem.find(folder))
    yield from choose_images(names, read_head, passed_over)
    if text := passed_over.text():
        logger.warning("%s: %s", folder, text)


def _uri_of(filesystem: AbstractFileSystem, path: str) -> str:
    return path if is_local(filesystem) else str(filesystem.unstrip_protocol(path))


def is_local(filesystem: AbstractFileSystem) -> bool:
    """Whether a file system is that of this machine."""
    return "file" in ([filesystem.protocol] if isinstance(filesystem.protocol, str) else filesystem.protocol)


def _resolve(parent: str, name: str) -> str:
    """A name in a list as a URI, or as an absolute path if it is local."""
    if "://" in name:
        return name.removeprefix("file://")
    if "://" in parent:
        return f"{parent}/{name}"
    return os.path.normpath(os.path.join(parent, name))


def _read_lines(filesystem: AbstractFileSystem, path: str) -> Iterator[str]:
    with filesystem.open(path, "rb") as file:
        is_utf_16 = bytes(file.read(2)) in (b"\xff\xfe", b"\xfe\xff")
    with filesystem.open(path, "rt", encoding="utf-16" if is_utf_16 else "utf-8-sig") as file:
        for line in file:
            if name := line.strip():
                yield name


def _read_cells(filesystem: AbstractFileSystem, path: str, column: str | None) -> Iterable[str]:
    import pyarrow as pa
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(path, filesystem=filesystem, format="parquet")
    strings = [field.name for field in table.schema if pa.types.is_string(field.type) or _is_large(field.type)]
    known = [name for name in COLUMNS if name in strings]
    chosen = column or (strings[0] if len(strings) == 1 else known[0] if known else None)
    if chosen not in strings:
        expected = f"a column of strings called {column or ' or '.join(COLUMNS)}"
        got = ", ".join(f"{field.name} ({field.type})" for field in table.schema)
        raise DatasetError(f"{path}: {mismatch(expected, got, 'name the column with --column')}")
    for batch in table.to_batches(columns=[chosen]):
        if nulls := batch.column(0).null_count:
            got = f"{nulls} rows without one"
            raise DatasetError(f"{path}: column {chosen}: {mismatch('a value in every row', got, 'remove these rows')}")
        yield from batch.column(0).to_pylist()


def _is_large(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
