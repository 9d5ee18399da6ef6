"""What `batch-predict` is given, as one list of images: files, folders, patterns, text lists and Parquet files.

Every name may be a path or a URI that fsspec knows (s3://, gs://, https://, ...). The list is an Arrow array: ten
million URIs of 70 characters are 0.8 GB, as Python strings they would be twice that.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from ..data.images import IMAGE_SUFFIXES
from ..errors import DatasetError, UserError

LISTED_AT_ONCE = 100_000
COLUMNS = ("image", "uri", "url", "path")


def filesystem_of(uri: str) -> tuple[Any, str]:
    """(fsspec file system, path in it). Raises UserError for a protocol that is unknown or not installed."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:  # fsspec says what to install, such as s3fs
        raise UserError(f"{uri}: {error} (with pip, on every machine of the cluster)") from error
    except ValueError as error:
        raise UserError(f"{uri}: {error}") from error
    return filesystem, str(path)


def list_images(inputs: Sequence[str], column: str | None = None) -> Any:
    """URIs of all images of the inputs, each once, in the order of the inputs: `pyarrow.LargeStringArray`.

    An input is an image, a folder (searched through for image files), a pattern, a text file (`.txt`) with one image a
    line, or a Parquet file or folder (`.parquet`) with `column` (None: its only column of strings, or the one that is
    called image, uri, url or path). Names in lists that are not absolute are relative to the list's folder. Local
    images are absolute paths. Listed images are not looked for. Raises DatasetError for an input without images.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    chunks: list[Any] = []
    for given in inputs:
        before = len(chunks)
        names = iter(_images_of(given, column))
        while some := list(islice(names, LISTED_AT_ONCE)):
            chunks.append(pa.array(some, pa.large_string()))
        if len(chunks) == before:
            raise DatasetError(f"{given}: no image in it")
    return pc.unique(pa.chunked_array(chunks, pa.large_string()))


def _images_of(given: str, column: str | None) -> Iterator[str]:
    filesystem, path = filesystem_of(given)
    try:
        matches = [path] if filesystem.exists(path) else []
        if not matches and glob.has_magic(path):
            matches = sorted(filesystem.glob(path))
        if not matches:
            raise DatasetError(f"{given}: no such file, folder or pattern")
        for match in map(str, matches):
            suffix = PurePosixPath(match).suffix.lower()
            if suffix in (".txt", ".parquet"):
                parent = _uri(filesystem, match.rpartition("/")[0])
                names = _lines(filesystem, match) if suffix == ".txt" else _cells(filesystem, match, column)
                yield from (_resolved(parent, name) for name in names)
            elif suffix not in IMAGE_SUFFIXES and filesystem.isdir(match):
                yield from (
                    _uri(filesystem, file)
                    for file in sorted(filesystem.find(match))
                    if PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES
                )
            else:
                yield _uri(filesystem, match)
    except (DatasetError, MemoryError):
        raise
    except Exception as error:  # file systems of object stores raise what their clients raise
        raise DatasetError(f"{given}: cannot be read ({type(error).__name__}: {error})") from error


def _uri(filesystem: Any, path: str) -> str:
    return path if is_local(filesystem) else str(filesystem.unstrip_protocol(path))


def is_local(filesystem: Any) -> bool:
    """Whether a file system is this machine's own."""
    return "file" in ([filesystem.protocol] if isinstance(filesystem.protocol, str) else filesystem.protocol)


def _resolved(parent: str, name: str) -> str:
    """A name in a list as a URI, or as an absolute path where it is local."""
    if "://" in name:
        return name.removeprefix("file://")
    if "://" in parent:
        return f"{parent}/{name}"
    return os.path.normpath(os.path.join(parent, name))


def _lines(filesystem: Any, path: str) -> Iterator[str]:
    with filesystem.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            if name := line.strip():
                yield name


def _cells(filesystem: Any, path: str, column: str | None) -> Iterable[str]:
    import pyarrow as pa
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(path, filesystem=filesystem, format="parquet")
    strings = [field.name for field in table.schema if pa.types.is_string(field.type) or _is_large(field.type)]
    known = [name for name in COLUMNS if name in strings]
    chosen = column or (strings[0] if len(strings) == 1 else known[0] if known else None)
    if chosen not in strings:
        raise DatasetError(
            f"{path}: expected a column of strings called {column or ' or '.join(COLUMNS)}, got "
            f"{', '.join(f'{field.name} ({field.type})' for field in table.schema)}; name yours with --column"
        )
    for batch in table.to_batches(columns=[chosen]):
        if batch.column(0).null_count:
            raise DatasetError(f"{path}: column {chosen} has rows without a value; leave them out")
        yield from batch.column(0).to_pylist()


def _is_large(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
