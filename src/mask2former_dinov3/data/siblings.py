"""Find images that come from one picture: copies of an exporter or of augmentation, tiles, files of equal content.

Such images must not lie on both sides of a split: a model would be scored on what it was trained on.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise

_SPLIT_FOLDERS = frozenset({"train", "training", "valid", "val", "validation", "test", "images"})
_ROBOFLOW = re.compile(r"(.+)\.rf\.[0-9A-Za-z]{16,}")
_STORED_ENDING = re.compile(r"(.+)[_.](?:bmp|gif|jpe?g|png|tiff?|webp)", re.IGNORECASE)
_TILES = tuple(
    re.compile(rf"(.+?){ending}", re.IGNORECASE)
    for ending in (
        r"[_-]+x=?\d+[_-]*y=?\d+(?:[_-]*w=?\d+[_-]*h=?\d+)?",
        r"[_-]+y=?\d+[_-]*x=?\d+(?:[_-]*h=?\d+[_-]*w=?\d+)?",
        r"[_-]+r(?:ow)?[_-]?\d+[_-]*c(?:ol(?:umn)?)?[_-]?\d+",
        r"[_-]+c(?:ol(?:umn)?)?[_-]?\d+[_-]*r(?:ow)?[_-]?\d+",
        r"__\d+(?:\.\d+)?__-?\d+___-?\d+",  # DOTA's development kit
    )
)
_FOUR_NUMBERS = re.compile(r"(.+?)[_-](\d+)[_-](\d+)[_-](\d+)[_-](\d+)")  # SAHI: left, top, right, bottom
_NUMBERED_PART = re.compile(r"(.+?)[_-]+(?:tile|patch|slice|chip|crop)[_-]?\d+(?:[_-]\d+)*", re.IGNORECASE)
_TWO_NUMBERS = re.compile(r"(.*[^\d_-].*?)[_-](\d+)[_-](\d+)")
_CHANGES = (
    r"(?:(?:aug(?:ment(?:ed|ation)?)?|[hv]?flip(?:ped)?|mirror(?:ed)?|rotat(?:ed?|ion)|blur(?:red)?|nois[ey]|copy)"
    r"[_-]?\d*|rot[_-]?\d{2,3})(?:deg)?"
)
_CHANGED = re.compile(rf"(.+?)(?:[_-]{_CHANGES}| - copy(?: \(\d+\))?)", re.IGNORECASE)
_CHANGED_BEFORE = re.compile(rf"{_CHANGES}[_-](.*[A-Za-z0-9].*)", re.IGNORECASE)

_SURE_SHARE, _LIKELY_SHARE, _SMALL_GROUP = 0.5, 0.25, 4
"""Largest part of all names that one group may hold (or that many names). Beyond it the pattern says what all images
have in common, and a split by it would leave one side without most of them. Patterns that are only likely may also
number different pictures."""

_JOINT = re.compile(r"[_.-]")

_CHUNK = 8192  # bytes at either end of a file that are compared before the whole; small files are read at once


def sibling_keys(names: Sequence[str]) -> list[str]:
    """A key for each file name (N,): names of one picture have the same; a name without siblings is its own key.

    Found by name: `.rf.<hash>` of Roboflow's exports, `_x512_y0`, `_r0_c1`, `_0_0` where the numbers form a grid,
    SAHI's and DOTA's coordinates, `_tile_3`, `_flip`, `_aug_2`, ` - Copy` and the like.
    """
    stems = [_stem_of(name) for name in names]
    keys = _limit(stems, [_sure_base(key) for key in stems], _SURE_SHARE)
    keys = _limit(keys, [_numbered_base(key) for key in keys], _LIKELY_SHARE)
    grids = _grid_bases(keys)
    keys = _limit(keys, [grids.get(key, key) for key in keys], _LIKELY_SHARE)
    number = Counter(keys)
    by_pattern = {key for key, stem in zip(keys, stems, strict=True) if key != stem and number[key] > 1}
    return [key if key in by_pattern else name for key, name in zip(keys, names, strict=True)]


def _stem_of(name: str) -> str:
    """A file name without its ending and without folders that name a split."""
    if "/" not in name and "\\" not in name:  # most names
        return os.path.splitext(name)[0]
    *folders, last = name.replace("\\", "/").split("/")
    kept = [folder for folder in folders if folder.lower() not in _SPLIT_FOLDERS]
    return "/".join([*kept, os.path.splitext(last)[0]])


def _sure_base(stem: str) -> str:
    """The name of the picture from which an exporter, augmentation or a tiling tool made an image."""
    if not _JOINT.search(stem):  # every pattern has one
        return stem
    if found := _ROBOFLOW.fullmatch(stem):
        stem = found[1]
        if stored := _STORED_ENDING.fullmatch(stem):
            stem = stored[1]
    while found := _CHANGED.fullmatch(stem) or _CHANGED_BEFORE.fullmatch(stem):
        stem = found[1]
    if (found := _FOUR_NUMBERS.fullmatch(stem)) and int(found[4]) > int(found[2]) and int(found[5]) > int(found[3]):
        return found[1]
    for pattern in _TILES:
        if found := pattern.fullmatch(stem):
            return found[1]
    return stem


def _numbered_base(stem: str) -> str:
    """The name of the picture of which an image is a numbered part."""
    found = _NUMBERED_PART.fullmatch(stem) if _JOINT.search(stem) else None
    return found[1] if found else stem


def _grid_bases(stems: Sequence[str]) -> dict[str, str]:
    """Stem -> base, of the names `BASE_A_B` whose numbers form a grid: even steps from 0 or 1 on, hardly a gap."""
    pairs: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    for stem in stems:
        if _JOINT.search(stem) and (found := _TWO_NUMBERS.fullmatch(stem)):
            pairs[found[1]][stem] = int(found[2]), int(found[3])
    bases: dict[str, str] = {}
    for base, numbers in pairs.items():
        rows, columns = (sorted({pair[side] for pair in numbers.values()}) for side in (0, 1))
        even = all(
            len(side) > 1 and side[0] in (0, 1) and len({b - a for a, b in pairwise(side)}) == 1
            for side in (rows, columns)
        )
        if even and len(numbers) >= 0.75 * len(rows) * len(columns):
            bases.update(dict.fromkeys(numbers, base))
    return bases


def _limit(keys: Sequence[str], bases: Sequence[str], share: float) -> list[str]:
    """The bases as keys; where more than `share` of all names would have the same, they stay as they were."""
    if bases == keys:
        return list(keys)
    number, distinct = Counter(bases), Counter(keys)
    most = max(share * len(keys), _SMALL_GROUP)
    return [
        key if (count := number[base]) > most and count > distinct[key] else base
        for key, base in zip(keys, bases, strict=True)
    ]


def join_equal_files(keys: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The keys (N,) with those of files of equal content made one; files that cannot be read stay as they are."""
    joined: dict[str, str] = {}

    def first_of(key: str) -> str:
        while key in joined:
            key = joined[key]
        return key

    for members in equal_files(paths):
        first, *others = sorted({first_of(keys[index]) for index in members})
        joined.update(dict.fromkeys(others, first))
    return [first_of(key) for key in keys]


def equal_files(paths: Sequence[str]) -> list[list[int]]:
    """Positions of the files that have the same content as another, group by group.

    Only files of the same length are opened, and only those with equal ends are read whole.
    """
    groups = [list(range(len(paths)))]
    # The ends first: the heads of many files of a camera are alike.
    for property_of in (os.path.getsize, partial(_checksum, tail=True), partial(_checksum, tail=False), _digest):
        groups = [part for group in groups for part in _divide(group, paths, property_of)]
    return groups


def _divide(members: Iterable[int], paths: Sequence[str], property_of: Callable[[str], object]) -> list[list[int]]:
    """The groups of two and more members with the same property; those whose file cannot be read are in none."""
    found: dict[object, list[int]] = defaultdict(list)
    for member in members:
        try:
            found[property_of(paths[member])].append(member)
        except OSError:
            continue
    return [group for group in found.values() if len(group) > 1]


def _checksum(path: str, *, tail: bool) -> int:
    """Of the first or the last bytes of a file. Files that have it in common by chance are read whole next."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))  # half the time of `open`
    try:
        if tail:
            os.lseek(file, max(os.lseek(file, 0, os.SEEK_END) - _CHUNK, 0), os.SEEK_SET)
        return zlib.crc32(os.read(file, _CHUNK))
    finally:
        os.close(file)


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def choose_groups(keys: Mapping[int, str], number: int) -> frozenset[int]:
    """About `number` of the images (id -> key), groups of equal keys whole; none where all are in one group.

    Groups are taken in the order of the hash of their key: reordering or adding images leaves the others where they
    are. Without siblings these are the first `number` images in the order of the hash of their file name.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for image_id, key in keys.items():
        members[key].append(image_id)
    if len(members) < 2:
        return frozenset()
    by_hash = sorted(members, key=lambda key: hashlib.sha256(key.encode()).digest())
    chosen: list[int] = []
    for key in by_hash:
        own = members[key]
        if len(own) < 2 * (number - len(chosen)) and len(chosen) + len(own) < len(keys):  # nearer to it than without
            chosen += own
    return frozenset(chosen or members[min(by_hash, key=lambda key: len(members[key]))])


def describe_groups(names: Mapping[int, str], keys: Mapping[int, str]) -> str:
    """The end of a sentence on how many images stay together, with an example; empty without siblings."""
    number = Counter(keys.values())
    together = [image_id for image_id, key in keys.items() if number[key] > 1]
    if not together:
        return ""
    example = [names[image_id] for image_id in together if keys[image_id] == keys[together[0]]][:2]
    groups = len({keys[image_id] for image_id in together})
    return (
        f"; {len(together)} images in {groups} groups stay together: copies by an exporter or augmentation, tiles of "
        f"one picture, or files of equal content ({' and '.join(example)})"
    )
