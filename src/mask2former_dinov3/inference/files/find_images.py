"""Find the image files that the user names (files, folders, glob patterns), each with a unique output name.

Links to files are followed for reading; links to folders inside a searched folder are not.
"""

from __future__ import annotations

import glob
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...data.images import IMAGE_SUFFIXES
from ...errors import mismatch

QUOTES = '""'  # an empty name in a message
LONGEST_NAME = 180  # bytes of a file name; outputs add to it, and file systems allow 255


def find_images(
    inputs: Sequence[str | Path], output: Path | None, failed: list[tuple[str, str]]
) -> list[tuple[Path, str]]:
    """The image files of files, folders and patterns: (path, name), sorted by name, each file once.

    The name is the path below the folder that was named, or else the file's name; equal names get a number, long names
    are cut. Folders are searched recursively, but not below `output`, which may hold overlays of earlier runs. Inputs
    that match nothing are appended to `failed` as (input, reason).
    """
    found: dict[Path, str] = {}
    for given in map(str, inputs):
        matches = _matches(given)
        images: dict[Path, str] = {}
        for match in matches:
            if match.is_dir():
                images.update((path, str(path.relative_to(match))) for path in _images_below(match, output))
            else:
                images[match] = match.name
        if not images:
            is_folder = any(match.is_dir() for match in matches)
            got = "a folder without images" if is_folder else "no such file, folder or pattern"
            failed.append((given, f"{given or QUOTES}: {mismatch('images', got)}"))
        for path, name in images.items():
            found.setdefault(path.resolve(), name)
    files: list[tuple[Path, str]] = []
    taken: set[str] = set()
    for path, name in sorted(found.items(), key=lambda item: (item[1], item[0])):
        short = _shorten(name)
        unique, number = short, 2
        # The overlays of a.bmp and a.png would both be a.png, so names differ before their suffix.
        while str(Path(unique).with_suffix("")) in taken:
            unique, number = str(Path(short).with_stem(f"{Path(short).stem}-{number}")), number + 1
        taken.add(str(Path(unique).with_suffix("")))
        files.append((path, unique))
    return files


def escape_unprintable(text: object) -> str:
    """Text for a message, with line breaks and terminal control characters written as escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(text))


def _matches(given: str) -> list[Path]:
    """The file or folder of that name, or else what the pattern matches; broken links are left out."""
    try:
        if not given:  # Path would read it as the current folder
            return []
        if Path(given).exists():
            return [Path(given)]
        return [path for match in glob.glob(given, recursive=True) if (path := Path(match)).exists()]
    except (OSError, ValueError):  # a name that is too long or contains a zero byte
        return []


def _images_below(folder: Path, output: Path | None) -> Iterator[Path]:
    skipped = None if output is None else output.resolve()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and skipped not in path.resolve().parents:
            yield path


def _shorten(name: str) -> str:
    """The name itself; if it is too long, its start and a checksum of the whole."""
    path = Path(name)
    stored = os.fsencode(path.name)
    if len(stored) <= LONGEST_NAME:
        return name
    start = stored[: LONGEST_NAME - 20].decode(errors="ignore")
    return str(path.with_name(f"{start}-{zlib.crc32(stored):08x}{path.suffix[:8]}"))
