"""What the user names (files, folders, patterns) to image files, each with a name of its own in the output.

Links to files are followed, for reading; links to folders inside a folder that is searched are not.
"""

from __future__ import annotations

import glob
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...data.images import IMAGE_SUFFIXES

LONGEST_NAME = 180  # bytes of a file's name; outputs add to it, and file systems end at 255


def find_images(inputs: Sequence[str | Path], output: Path, failed: list[tuple[str, str]]) -> list[tuple[Path, str]]:
    """Image files of files, folders and patterns: (path, name), sorted by name, each file once.

    The name is the path below the folder given, the file's name otherwise; equal names get a number, long ones are cut.
    A folder is searched through, except below `output`, where earlier overlays lie. Inputs that match nothing are added
    to `failed` as (input, reason).
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
            reason = "no image in it" if any(match.is_dir() for match in matches) else "no such file, folder or pattern"
            failed.append((given, f"{given}: {reason}"))
        for path, name in images.items():
            found.setdefault(path.resolve(), name)
    files: list[tuple[Path, str]] = []
    taken: set[str] = set()
    for path, name in sorted(found.items(), key=lambda item: (item[1], item[0])):
        short = _shortened(name)
        unique, number = short, 2
        # Overlays of a.bmp and a.png would both be a.png: names differ before their suffix.
        while str(Path(unique).with_suffix("")) in taken:
            unique, number = str(Path(short).with_stem(f"{Path(short).stem}-{number}")), number + 1
        taken.add(str(Path(unique).with_suffix("")))
        files.append((path, unique))
    return files


def shown(text: object) -> str:
    """A name for a message: what could break the line or move the cursor is written as an escape."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(text))


def _matches(given: str) -> list[Path]:
    """The file or folder of that name, or else what the pattern matches; dead links are left out."""
    try:
        if Path(given).exists():
            return [Path(given)]
        return [path for match in glob.glob(given, recursive=True) if (path := Path(match)).exists()]
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return []


def _images_below(folder: Path, output: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and output.resolve() not in path.resolve().parents:
            yield path


def _shortened(name: str) -> str:
    """The same, or its start and a number made of the whole, if the file's own name is long."""
    path = Path(name)
    stored = os.fsencode(path.name)
    if len(stored) <= LONGEST_NAME:
        return name
    start = stored[: LONGEST_NAME - 20].decode(errors="ignore")
    return str(path.with_name(f"{start}-{zlib.crc32(stored):08x}{path.suffix[:8]}"))
