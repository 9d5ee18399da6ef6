"""Which files of a folder are images: one rule for `predict`, `batch-predict`, `check-data` and calibration images.

Files with an ending that Pillow reads are images, and files without an ending whose first bytes are those of an image.
Hidden files, and folders in which systems keep thumbnails and copies, are left alone. Other files are passed over. A
file that the user names himself is always read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .faults import count_of
from .file_kinds import HEAD, IMAGE_SUFFIXES, has_image_head

_KEPT_BY_SYSTEMS = frozenset(
    {"__macosx", "@eadir", "@__thumb", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
    | {"thumbs.db", "desktop.ini"}
)
"""Names (lower case) that macOS, Synology, QNAP, Windows and Linux make: thumbnails, resource forks, deleted files."""


@dataclass
class PassedOver:
    """Counts of the files of a folder that are not taken: others than images by their ending, and hidden ones.

    special: broken links, pipes and devices.
    """

    endings: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    special: int = 0

    def text(self) -> str:
        """Such as "passed over: 3 files (.txt 2, no ending 1) and 2 hidden"; empty if there are none."""
        number = self.endings.total()
        parts = []
        if number:
            listed = ", ".join(f"{ending or 'no ending'} {count}" for ending, count in self.endings.most_common())
            parts.append(f"{count_of(number, 'file')} ({listed})")
        if self.hidden:
            parts.append(f"{self.hidden} hidden" if number else count_of(self.hidden, "hidden file"))
        if self.special:
            parts.append(count_of(self.special, "special file") + " (broken links, pipes, devices)")
        return f"passed over: {' and '.join(parts)}" if parts else ""


def is_hidden(name: str) -> bool:
    """Whether a path below a folder (with "/") is hidden, or in a hidden folder: `._a.png`, `.cache/`, `@eaDir/`."""
    if "/" not in name:  # most names
        return name[:1] == "." or name.lower() in _KEPT_BY_SYSTEMS
    return any(part[0] == "." or part.lower() in _KEPT_BY_SYSTEMS for part in name.split("/") if part)


def choose_images(names: Iterable[str], read_head: Callable[[str], bytes], passed_over: PassedOver) -> Iterator[str]:
    """The names (paths below a folder, with "/") that are images; all others are counted in `passed_over`.

    read_head: the first HEAD bytes of the file of that name; called only where the name has no ending. An ending of
    digits (`scan.0001`) is none. A file that cannot be read is passed over.
    """
    for name in names:
        ending = os.path.splitext(name)[1].lower().removesuffix(".")
        if is_hidden(name):
            passed_over.hidden += 1
        elif ending in IMAGE_SUFFIXES or ((not ending or ending[1:].isdecimal()) and _has_image_head(name, read_head)):
            yield name
        else:
            passed_over.endings[ending] += 1


def _has_image_head(name: str, read_head: Callable[[str], bytes]) -> bool:
    try:
        return has_image_head(read_head(name))
    except OSError:
        return False


def _entries_of(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a folder, none where it cannot be listed; unlike `os.walk`, they know whether they are files."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # of a link to itself
        return False


def images_in(folder: Path, passed_over: PassedOver, skip: Path | None = None) -> Iterator[Path]:
    """The image files at any depth of a folder, sorted; not those below `skip`. Links to folders are not followed."""
    return (folder / name for name in image_names_in(folder, passed_over, skip))


def image_names_in(folder: Path, passed_over: PassedOver, skip: Path | None = None) -> Iterator[str]:
    """As `images_in`, as paths below the folder, with "/"."""

    def read_head(name: str) -> bytes:
        with (folder / name).open("rb") as file:
            return file.read(HEAD)

    names, folders = [], [""]
    while folders:
        start = folders.pop()
        for entry in _entries_of(os.path.join(folder, start)):
            if _is_folder(entry):
                if not entry.is_symlink() and (skip is None or Path(entry.path).resolve() != skip):
                    folders.append(f"{start}{entry.name}/")
            elif _is_file(entry):
                names.append(start + entry.name)
            else:
                passed_over.special += 1
    if skip is None or folder.resolve() != skip:
        names.sort(key=lambda name: name.split("/"))  # the order of pathlib
        yield from choose_images(names, read_head, passed_over)
