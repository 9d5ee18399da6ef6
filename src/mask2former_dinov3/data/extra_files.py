"""Find the second file of an image, such as its depth: the option `extra_images` says where it is.

The option is a folder, in which the second file has the image's name but for the ending, or a pattern in which
`{folder}` stands for the image's folder, `{stem}` for its name without the ending and `{name}` for its whole name, such
as `{folder}/../depth/{stem}.png`.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from ..errors import DatasetError, mismatch
from .file_kinds import IMAGE_SUFFIXES

PLACEHOLDERS = ("{folder}", "{stem}", "{name}")


def find_extra(image: Path | str, where: str) -> Path:
    """The second file of an image. where: the option `extra_images`.

    Raises DatasetError, naming the image, where there is none, or more than one.
    """
    path = Path(image)
    if any(one in where for one in PLACEHOLDERS):
        text = where
        for placeholder, value in zip(PLACEHOLDERS, (str(path.parent), path.stem, path.name), strict=True):
            text = text.replace(placeholder, value)
        found = Path(text)
        if not found.is_file():
            raise _missing(path, f"no file {text}")
        return found
    try:
        names = _names_by_stem(where, os.stat(where).st_mtime_ns).get(path.stem, ())
    except OSError as error:
        raise _missing(path, f"no folder {where}") from error
    if len(names) != 1:
        raise _missing(path, f"{len(names) or 'no'} images of the name {path.stem} in the folder {where}")
    return Path(where, names[0])


def check_extra_size(image: Path | str, size: tuple[int, int], extra: Path, extra_size: tuple[int, int]) -> None:
    """Raise DatasetError unless an image and its second file have the same (height, width)."""
    if size != extra_size:
        expected = f"a second file of {size[0]} x {size[1]} pixels (height x width), as the image has"
        got = f"{extra} of {extra_size[0]} x {extra_size[1]}"
        raise DatasetError(f"{Path(image).name}: {mismatch(expected, got)}")


def _missing(image: Path, got: str) -> DatasetError:
    advice = "extra_images says where it is"
    return DatasetError(f"{image.name}: {mismatch('a second file of the image', got, advice)}")


@lru_cache(maxsize=4)
def _names_by_stem(folder: str, changed: int) -> dict[str, tuple[str, ...]]:
    """Name without ending -> the images of a folder that have it. changed: when the folder was, for the cache."""
    found: dict[str, tuple[str, ...]] = {}
    for name in sorted(os.listdir(folder)):
        stem, ending = os.path.splitext(name)
        if not name.startswith(".") and ending.lower() in IMAGE_SUFFIXES:
            found[stem] = (*found.get(stem, ()), name)
    return found
