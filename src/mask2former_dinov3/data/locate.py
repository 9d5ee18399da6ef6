"""Find the image files that an annotation file names.

| the name | is looked for |
|---|---|
| `a.png` | in the image folder, and in that of the annotations, which is reported as a note |
| `day1/a.png` | the same, and in the folder above the image folder, for names that repeat the image folder |
| in another Unicode form, or with `%20` | the same places, one file may fit; reported as a note |
| an absolute path, a URL, or one with `..`, that is not there | by its last parts in the image folder, as a note |

Where the user named the image folder, files elsewhere are never taken. The last part of a name alone counts only if no
other image of the file and no other file below the image folder has it. It never replaces a missing file of a data set
whose other images are where their names say.

A folder is listed once, instead of asking for every file: data sets have 100,000 files in one folder.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from ..errors import mismatch
from .faults import FaultReport, Place, count_of

if TYPE_CHECKING:
    from .layout import Split

NOT_FOUND = "image file not found"
_FOREIGN = re.compile(r"/|~|\.\.(/|$)|[A-Za-z]:/|[A-Za-z][A-Za-z0-9+.-]*://")  # paths of other machines, and URLs


def locate_images(names: Mapping[int, str], split: Split, faults: FaultReport) -> tuple[dict[int, str], set[int]]:
    """The path of every image, id -> path, and the ids of images whose file may be another's; each is an error.

    Paths are texts: 100,000 Path objects take seconds. names: id -> `file_name` of all images of the file. The path of
    a file that does not exist is the one in the image folder. Other spellings and shortened names become notes, two
    images with one file a warning.
    """
    search = _Search(split)
    found: dict[int, str] = {}
    respelled: list[int] = []
    for image_id, name in names.items():
        own = search.find(name)
        if own is not None:
            found[image_id], exact = own
            if not exact:
                respelled.append(image_id)
    missing = [image_id for image_id in names if image_id not in found]
    _note_outside(found, search, names, split, faults)
    _note_spellings({image_id: (names[image_id], found[image_id]) for image_id in respelled}, faults)
    _warn_of_shared_files({image_id: search.resolve(path) for image_id, path in found.items()}, names, faults)
    shortened = {}
    for image_id in missing:
        # A whole file of foreign names is from another machine; one missing among found ones is missing.
        if not found or _FOREIGN.match(_slashes(names[image_id])):
            path = search.find_shortened(names[image_id])
            if path is not None:
                shortened[image_id] = path
    refused = _refuse_ambiguous(shortened, found, search, names, faults)
    used = {image_id: (names[image_id], shortened[image_id]) for image_id in shortened if image_id not in refused}
    _note_shortened(used, split, faults)
    absent = {image_id: os.path.join(split.images, _slashes(names[image_id])) for image_id in missing}
    outside = [key for key, path in absent.items() if key not in shortened and not search.may_take(path)]
    for image_id in outside:
        expected = mismatch(f"an image file below {split.images}", "a path outside it, and no file of its name")
        faults.add_error(f"{names[image_id]}: {expected}", image_id, kind=NOT_FOUND)
    paths = {image_id: _tidy(path) for image_id, path in (absent | found | shortened).items()}
    nowhere = {key: os.path.normpath(path) for key, path in absent.items() if key not in shortened}
    _warn_of_shared_files(nowhere, names, faults)
    return {image_id: paths[image_id] for image_id in names}, refused.union(outside)


class _Listing:
    """The entries of one folder: name -> "file", "folder" or "link" (to a file); None if it cannot be listed."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.entries: dict[str, str] = {}
        self.is_complete = True
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(OSError):  # of a link to itself
                        if entry.is_dir():
                            self.entries[entry.name] = "folder"
                        elif entry.is_file():  # not a link whose target is gone
                            self.entries[entry.name] = "link" if entry.is_symlink() else "file"
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:  # its files may be readable nevertheless
            self.is_complete = False
        self._by_spelling: dict[str, list[str]] | None = None

    def has_file(self, name: str) -> bool:
        """Whether the folder has a file of exactly this name."""
        kind = self.entries.get(name)
        if kind is not None:
            return kind != "folder"
        # A file system that ignores upper and lower case, or its own choice of Unicode form, finds more.
        return (bool(self.entries) or not self.is_complete) and os.path.isfile(os.path.join(self.folder, name))

    def respell(self, name: str, *, folder: bool) -> str | None:
        """The only entry whose name is `name` in another spelling."""
        if self._by_spelling is None:
            self._by_spelling = defaultdict(list)
            for entry in self.entries:
                self._by_spelling[_spelling(entry)].append(entry)
        fitting = self._by_spelling.get(_spelling(name), ())
        fitting = [entry for entry in fitting if (self.entries[entry] == "folder") == folder]
        return fitting[0] if len(fitting) == 1 else None


class _Search:
    """Looks for names in the folders of a split; folders are listed, and subfolders resolved, once."""

    def __init__(self, split: Split) -> None:
        self._images = str(split.images)
        near = (self._images, str(split.annotations.parent))
        self._roots_of_bare_names = _drop_repeated_folders(near)
        self._roots = _drop_repeated_folders((*near, str(split.images.parent)))
        self._top, self._is_only = os.path.abspath(self._images), split.only_images
        self._listings: dict[str, _Listing] = {}
        self._folders: dict[tuple[str, str, bool], str | None] = {}
        self._real: dict[str, str] = {}
        self._bare_names: Counter[str] | None = None
        self._first = os.path.join(self._roots_of_bare_names[0], "")

    def find(self, name: str) -> tuple[str, bool] | None:
        """The path of a file, and whether it is spelled as in `name`; None if there is none."""
        name = _slashes(name)
        if "/" not in name and self._first_entries.get(name) in ("file", "link"):  # a short way for most names
            return self._first + name, True
        parent, slash, base = name.rpartition("/")
        if not base:
            return None
        roots = self._roots if parent else self._roots_of_bare_names
        parent = slash if slash and not parent else parent  # a file of the root folder
        for exact in (True, False):
            for root in roots:
                path = self._find_below(root, parent, base, exact)
                if path is not None:
                    return path, exact
        return None

    @cached_property
    def _first_entries(self) -> Mapping[str, str]:
        """The entries of the folder in which bare names are looked for first."""
        folder = self._enter(self._roots_of_bare_names[0], "", True)
        return {} if folder is None or os.sep != "/" else self._list(folder).entries

    def find_shortened(self, name: str) -> str | None:
        """The file in the image folder that has the most of the last parts of `name`; None if there is none."""
        parts = [part for part in _slashes(name).split("/") if part not in ("", ".", "..")]
        for first in range(1, len(parts)):
            for exact in (True, False):
                path = self._find_below(self._images, "/".join(parts[first:-1]), parts[-1], exact)
                if path is not None:
                    return path
        return None

    def count_bare(self, name: str) -> int:
        """Number of files below the image folder with this bare name, in any spelling; hidden folders do not count."""
        if self._bare_names is None:
            self._bare_names = Counter()
            for _, folders, files in os.walk(self._images):
                folders[:] = [folder for folder in folders if not folder.startswith(".")]
                self._bare_names.update(map(_spelling, files))
        return self._bare_names[_spelling(name)]

    def may_take(self, path: str) -> bool:
        """Whether a path is not outside the only folder to search, if there is only one."""
        return not self._is_only or self.is_inside(path)

    def is_inside(self, path: str) -> bool:
        """Whether a path is that of the image folder or below it."""
        place = os.path.abspath(path)
        return place == self._top or place.startswith(self._top.rstrip(os.sep) + os.sep)

    def is_bare(self, path: str) -> bool:
        """Whether a path that was found lies directly in the image folder."""
        return os.path.dirname(path) == self._images

    def resolve(self, path: str) -> str:
        """The file behind a found path, links followed."""
        folder, _, name = path.rpartition(os.sep)
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder)
        listing = self._listings.get(folder)
        if listing is None or listing.entries.get(name) != "file":
            return os.path.realpath(path)
        return os.path.join(self._real[folder], name)

    def _find_below(self, root: str, parent: str, base: str, exact: bool) -> str | None:
        folder = self._enter(root, parent, exact)
        if folder is None:
            return None
        listing = self._list(folder)
        if listing.has_file(base):
            return os.path.join(folder, base)
        other = None if exact else listing.respell(base, folder=False)
        return None if other is None else os.path.join(folder, other)

    def _enter(self, root: str, parent: str, exact: bool) -> str | None:
        """The folder `parent` below `root`; None if there is none, or if it is outside the only folder to search."""
        key = root, parent, exact
        if key not in self._folders:
            path: str | None = os.path.join(root, parent) if parent else root  # an absolute parent replaces the root
            if not os.path.isdir(path or ""):
                path = None if exact or parent.startswith("/") else self._respell_folder(root, parent)
            self._folders[key] = path if path is not None and self.may_take(path) else None
        return self._folders[key]

    def _respell_folder(self, root: str, parent: str) -> str | None:
        path = root
        for part in parent.split("/"):
            if part in ("", ".", "..") or self._list(path).entries.get(part) == "folder":
                path = os.path.join(path, part)
                continue
            other = self._list(path).respell(part, folder=True)
            if other is None:
                return None
            path = os.path.join(path, other)
        return path

    def _list(self, folder: str) -> _Listing:
        if folder not in self._listings:
            self._listings[folder] = _Listing(folder)
        return self._listings[folder]


def _drop_repeated_folders(folders: Sequence[str]) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for folder in folders:
        found.setdefault(os.path.abspath(folder), folder)
    return tuple(found.values())


def _slashes(name: str) -> str:
    return name.replace("\\", "/")


def absolute_path(path: str) -> str:
    """As `os.path.abspath`, in a fraction of its time where nothing is to be done."""
    return path if path.startswith("/") and os.sep == "/" and _is_tidy(path) else os.path.abspath(path)


def _is_tidy(path: str) -> bool:
    return "//" not in path and "/." not in path and not path.startswith("./") and path[-1:] != "/"


def _tidy(path: str) -> str:
    """A path as `Path` spells it, which is nearly always as it is."""
    return path if os.sep == "/" and _is_tidy(path) else str(Path(path))


def _spelling(name: str) -> str:
    """A name in the one spelling in which names are compared: Unicode's form NFC, %20 and the like decoded."""
    decoded = unquote(name) if "%" in name else name
    return decoded if decoded.isascii() else unicodedata.normalize("NFC", decoded)


def _refuse_ambiguous(
    shortened: Mapping[int, str],
    found: Mapping[int, str],
    search: _Search,
    names: Mapping[int, str],
    faults: FaultReport,
) -> set[int]:
    """The images whose shortened name may be another picture's, each added as an error."""
    if not shortened:
        return set()
    resolved = {image_id: search.resolve(path) for image_id, path in shortened.items()}
    users = Counter(resolved.values()) + Counter(set(map(search.resolve, found.values())))
    refused = set()
    for image_id, path in shortened.items():
        name = os.path.basename(path)
        if users[resolved[image_id]] > 1:
            reason = "images of other names would come out as the same file"
        elif search.is_bare(path) and search.count_bare(name) > 1:
            reason = f"there are {search.count_bare(name)} files of this name below the folder"
        else:
            continue
        refused.add(image_id)
        text = f"{names[image_id]}: no such file; {path} is not taken instead, since {reason}"
        faults.add_error(f"{text}; correct file_name in the annotations", image_id, kind=NOT_FOUND)
    return refused


def _warn_of_shared_files(resolved: Mapping[int, str], names: Mapping[int, str], faults: FaultReport) -> None:
    first: dict[str, int] = {}
    for image_id, path in resolved.items():
        other = first.setdefault(path, image_id)
        if other != image_id:
            reason = f"{names[image_id]}: the same file as image {other}; check whether its instances are split"
            faults.add_warning(reason, image_id, kind="one file for several images")


def _note_spellings(respelled: Mapping[int, tuple[str, str]], faults: FaultReport) -> None:
    places: list[Place] = [(image_id, None) for image_id in respelled]
    for name, path in list(respelled.values())[:1]:
        count = count_of(len(places), "image file")
        # In ASCII: two Unicode forms of a name look the same.
        example = f"{name!a} is the file {os.path.basename(path)!a}"
        reason = f"{count} found under another spelling of the name (Unicode form or %20): {example}"
        faults.add_group("note", "file name spelled otherwise", places, reason)


def _note_outside(
    found: Mapping[int, str], search: _Search, names: Mapping[int, str], split: Split, faults: FaultReport
) -> None:
    """A note for files that lie elsewhere, other than by an absolute path in the annotations."""
    folder_of = {key: os.path.dirname(path) for key, path in found.items()}
    outer = {folder for folder in set(folder_of.values()) if not search.is_inside(folder)}
    outside = {key: path for key, path in found.items() if folder_of[key] in outer} if outer else {}
    places: list[Place] = [(key, None) for key, path in outside.items() if _slashes(names[key]) != path]
    if places:
        count, example = count_of(len(places), "image file"), outside[places[0][0] or 0]
        reason = f"{count} not in the image folder {split.images}, found elsewhere: {example}"
        faults.add_group("note", "file outside the image folder", places, reason)


def _note_shortened(shortened: Mapping[int, tuple[str, str]], split: Split, faults: FaultReport) -> None:
    """A note for names of other machines; a warning where folders that should be here are not."""
    places: list[Place] = [(image_id, None) for image_id in shortened]
    for name, path in list(shortened.values())[:1]:
        count = count_of(len(places), "image file")
        reason = f"{count} not where the name says, found in {split.images} by the end of it: {name} is {path}"
        is_foreign = all(_FOREIGN.match(_slashes(one)) for one, _ in shortened.values())
        faults.add_group("note" if is_foreign else "warning", "file found by the end of its name", places, reason)
