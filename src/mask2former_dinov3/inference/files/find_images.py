"""Find the image files that the user names (files, folders, glob patterns), each with a unique output name.

Links to files are followed for reading; links to folders inside a searched folder are not.
"""

from __future__ import annotations

import glob
import os
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...data.image_folders import PassedOver, images_in, is_hidden
from ...errors import mismatch

QUOTES = '""'  # an empty name in a message
LONGEST_NAME = 180  # bytes of a file name; outputs add to it, and file systems allow 255


class FoundImage(NamedTuple):
    """An image file: its path, its unique name in the output, and what it is called in images.json.

    file_name: the path below the folder that was named, or else the file's name; where several files would be called
    the same, with the folders above.
    """

    path: Path
    name: str
    file_name: str


def find_images(
    inputs: Sequence[str | Path],
    output: Path | None,
    failed: list[tuple[str, str]],
    passed_over: PassedOver | None = None,
) -> list[FoundImage]:
    """The image files of files, folders and patterns, sorted by name, each file once.

    The name is the path below the folder that was named, or else the file's name; equal names get a number, long names
    are cut. Folders are searched recursively (see `data.image_folders`), but not below `output`, which may hold
    overlays of earlier runs. Inputs that match nothing are appended to `failed` as (input, reason).
    """
    found: dict[Path, tuple[Path, str]] = {}  # resolved path -> path, name
    passed_over = PassedOver() if passed_over is None else passed_over
    skipped = None if output is None else output.resolve()
    for given in map(str, inputs):
        matches = _matches(given, passed_over)
        images: dict[Path, str] = {}
        for match in matches:
            if match.is_dir():
                images.update((path, str(path.relative_to(match))) for path in images_in(match, passed_over, skipped))
            else:
                images[match] = match.name
        if not images:
            is_folder = any(match.is_dir() for match in matches)
            got = "a folder without images" if is_folder else "no such file, folder or pattern"
            reason = mismatch("images", got, passed_over.text() if is_folder else "")
            failed.append((given, f"{given or QUOTES}: {reason}"))
        for path, name in images.items():
            found.setdefault(path.resolve(), (path, name))
    files: list[FoundImage] = []
    taken: set[str] = set()
    file_names = _tell_apart([one for _, one in sorted(found.items())])
    for resolved, (_, name) in sorted(found.items(), key=lambda item: (item[1][1], item[0])):
        short = _shorten(_make_usable(name))
        unique, number = short, 2
        # The overlays of a.bmp and a.png would both be a.png, so names differ before their suffix.
        while str(Path(unique).with_suffix("")) in taken:
            unique, number = str(Path(short).with_stem(f"{Path(short).stem}-{number}")), number + 1
        taken.add(str(Path(unique).with_suffix("")))
        files.append(FoundImage(resolved, unique, file_names[found[resolved][0]]))
    return files


def _tell_apart(files: Sequence[tuple[Path, str]]) -> dict[Path, str]:
    """Path -> its name; where several files have the same, with so many folders above that they differ."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path, name in files:
        by_name[name].append(path)
    apart: dict[Path, str] = {}
    for name, paths in by_name.items():
        parts = [path.absolute().parts for path in paths]
        depth = len(Path(name).parts)
        while len(paths) > 1 and len({own[-depth:] for own in parts}) < len(paths):
            depth += 1
        for path, own in zip(paths, parts, strict=True):
            apart[path] = name if len(paths) == 1 else str(Path(*own[-depth:]))
    return apart


def _make_usable(name: str) -> str:
    """The name itself, or with "file" before a file's name of dots and an ending alone (`...png`): no ending is left
    of it, and outputs that begin with a dot would be hidden."""
    path = Path(name)
    return str(path.with_name(f"file{path.name}")) if path.name.startswith(".") else name


def escape_unprintable(text: object) -> str:
    """Text for a message, with line breaks and terminal control characters written as escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(text))


def _matches(given: str, passed_over: PassedOver) -> list[Path]:
    """The file or folder of that name, or else what the pattern matches; broken links and hidden files are left out."""
    try:
        if not given:  # Path would read it as the current folder
            return []
        if Path(given).exists():
            return [Path(given)]
        matches = [path for match in glob.glob(given, recursive=True) if (path := Path(match)).exists()]
    except (OSError, ValueError):  # a name that is too long or contains a zero byte
        return []
    written = set(Path(given).parts)
    shown = [path for path in matches if not any(is_hidden(part) for part in path.parts if part not in written)]
    passed_over.hidden += len(matches) - len(shown)
    return shown


def _shorten(name: str) -> str:
    """The name itself; if it is too long, its start and a checksum of the whole."""
    path = Path(name)
    stored = os.fsencode(path.name)
    if len(stored) <= LONGEST_NAME:
        return name
    start = stored[: LONGEST_NAME - 20].decode(errors="ignore")
    return str(path.with_name(f"{start}-{zlib.crc32(stored):08x}{path.suffix[:8]}"))
