"""Read the tags of a TIFF: what its samples are, how many pages it has, and which of them are channels of one image.

Pillow parses the directories; it identifies only the kinds of TIFF that it can decode, and this module describes all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from PIL import TiffImagePlugin

from ..errors import DatasetError, mismatch
from ..read_options import MOST_CHANNELS, ReadOptions

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST_PAGES = 100_000
"""Directories that are read; more count as damage, since a directory may lead to an earlier one."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _DESCRIPTION = 256, 257, 258, 259, 262, 270
_SAMPLES, _PLANAR, _EXTRA, _FORMAT, _SUBFILE, _ORIENTATION = 277, 284, 338, 339, 254, 274
_STRIP_OFFSETS, _STRIP_LENGTHS, _TILE_OFFSETS, _TILE_LENGTHS, _JPEG_TABLES = 273, 279, 324, 325, 347
_XMP = 700
_REDUCED_OR_MASK = 1 | 4  # NewSubfileType of overviews and of transparency masks: no pages of their own
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_ALPHA = (1, 2)  # ExtraSamples: premultiplied or not
_KINDS = {_UNSIGNED: "integer", _SIGNED: "signed integer", _FLOAT: "floating point"}
_DTYPES = {_UNSIGNED: "u", _SIGNED: "i", _FLOAT: "f"}
_COLOURS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "LAB"}
_COMPRESSIONS = {
    1: "none", 2: "CCITT", 3: "CCITT", 4: "CCITT", 5: "LZW", 6: "JPEG", 7: "JPEG", 8: "deflate", 32773: "packbits",
    32946: "deflate", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 50000: "zstd", 50001: "WebP", 50002: "JPEG XL",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TiffPage:
    """The tags of one page. extra: what each sample beyond the colours is (0 unnamed, 1 or 2 alpha).

    sample_format: 1 unsigned, 2 signed, 3 floating point. directory: its number in the file, from 1.
    """

    directory: int
    height: int
    width: int
    bits: tuple[int, ...]
    samples: int
    sample_format: int
    photometric: int
    planar: bool
    compression: int
    extra: tuple[int, ...]
    orientation: int
    description: str

    @property
    def colours(self) -> int:
        """Number of samples that are grey or colours, as the file names them: 1, 3 or 4."""
        return {2: 3, 6: 3, 8: 3, 5: 4}.get(self.photometric, 1)

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The type of a sample in memory; None for one that NumPy does not have (complex, 24 bits)."""
        size = next((size for size in (8, 16, 32, 64) if self.bits[0] <= size), 0)
        kind = _DTYPES.get(self.sample_format)
        return None if kind is None or not size or (kind == "f" and size == 8) else np.dtype(f"{kind}{size // 8}")

    @property
    def eight_bits(self) -> bool:
        """Whether the samples are unsigned integers of at most 8 bits."""
        return self.sample_format == _UNSIGNED and max(self.bits) <= 8

    @property
    def only_pillow(self) -> bool:
        """Whether only Pillow turns the colours into RGB: CMYK, Lab, and YCbCr that is not stored as JPEG."""
        return self.photometric in (5, 8, 9, 10) or (self.photometric == 6 and self.compression not in (6, 7))

    def colour_samples(self) -> list[int]:
        """Numbers of the samples, from 0, that are read as grey or as red, green and blue.

        Three samples without a colour are read as colours. Raises DatasetError for another number of them.
        """
        if self.photometric not in (0, 1):
            return [0] if self.photometric == 3 else [0, 1, 2]
        nameless = self.samples - sum(kind in _ALPHA for kind in self.extra)
        if nameless not in (1, 3):
            advice = (
                "set channels to those that are to be read: one, three such as 3,2,1, or all for a model of so many "
                "channels"
            )
            raise DatasetError(mismatch("a grey or an RGB image", self.describe(), advice))
        return list(range(nameless))

    def stored_samples(self) -> list[int]:
        """Numbers of all samples, from 0, but alpha; [-1] where only the colours they stand for can be read."""
        if self.photometric == 3 or self.photometric == 6 or self.only_pillow:
            return [-1]
        first = self.samples - len(self.extra)
        alpha = {first + place for place, kind in enumerate(self.extra) if kind in _ALPHA}
        return [sample for sample in range(self.samples) if sample not in alpha]

    def describe(self) -> str:
        """The page in words, for messages."""
        bits = "/".join(map(str, dict.fromkeys(self.bits)))
        kind = _KINDS.get(self.sample_format, "unknown or complex")
        samples = "1 sample" if self.samples == 1 else f"{self.samples} samples"
        colours = _COLOURS.get(self.photometric, f"photometric {self.photometric}")
        packed = _COMPRESSIONS.get(self.compression, str(self.compression))
        return (
            f"a TIFF with {samples} of {bits} bits ({kind}; colours: {colours}; compression: {packed}; samples stored "
            f"{'one after the other' if self.planar else 'together'})"
        )


@dataclass(frozen=True, slots=True)
class TiffFile:
    """The pages of a TIFF without its overviews. channels: how many pages are channels of one image (1: none).

    stride: pages from one channel of an image to the next.
    """

    pages: tuple[TiffPage, ...]
    channels: int
    stride: int

    @property
    def images(self) -> int:
        """Number of pages, where pages that are channels of one image count once."""
        return len(self.pages) // self.channels

    def chosen(self, options: ReadOptions) -> list[tuple[TiffPage, int]]:
        """(page, sample from 0) of what `options` choose; sample -1: all samples of the page.

        Raises DatasetError where the file has no such page or channel.
        """
        if options.page > self.images:
            raise DatasetError(
                mismatch(f"a page {options.page}", f"a file with {self.images} pages", "choose another page")
            )
        number = options.page - 1
        first = number % self.stride + self.stride * self.channels * (number // self.stride)
        of_pages = self.channels > 1
        page = self.pages[first]
        if options.channels is None:
            return [(page, -1)]
        count = self.channels if of_pages else page.samples
        numbers = options.numbers
        if numbers is None:
            samples = range(count) if of_pages else page.stored_samples()
            numbers = tuple(sample + 1 for sample in samples)
            if len(numbers) > MOST_CHANNELS:
                advice = "name those that are to be read"
                raise DatasetError(mismatch(f"at most {MOST_CHANNELS} channels", len(numbers), advice))
        elif max(numbers) > count:
            raise DatasetError(
                mismatch(f"a channel {max(numbers)}", f"a file with {count} channels", "choose other channels")
            )
        if of_pages:
            return [(self.pages[first + self.stride * (channel - 1)], 0) for channel in numbers]
        return [(page, channel - 1) for channel in numbers]

    def count_channels(self, options: ReadOptions) -> int:
        """The number of channels that `options` choose, with grey as RGB. Raises as `chosen`."""
        if options.channels is None and options.grey_as_rgb:
            return 3
        (page, sample), *others = self.chosen(options)
        count = 1 + len(others) if sample >= 0 else 3 if page.photometric > 1 else 1
        return 3 if count == 1 and options.grey_as_rgb else count

    def describe_unread(self, options: ReadOptions) -> str:
        """What of the file is not read, in words; empty if all is. Raises as `chosen`."""
        parts = []
        if self.images > 1:
            parts.append(f"{self.images} pages, {_which(options.page)} is read")
        chosen = self.chosen(options)
        page, sample = chosen[0]
        if sample >= 0:
            numbers = options.numbers
            count = self.channels if self.channels > 1 else page.samples
            if numbers is None and count > len(chosen):
                parts.append(f"{count} channels, alpha is not read (channels 1 to {count} by their numbers read it)")
            elif numbers is not None and count > len(set(numbers)):
                parts.append(f"{count} channels, {', '.join(map(str, numbers))} of them are read")
        elif self.channels > 1:
            parts.append(f"{self.channels} channels, the first is read")
        elif page.samples > page.colours and not set(_ALPHA) & set(page.extra):
            if page.colours == 1 and page.samples == 3:
                parts.append("3 channels without a colour, read as red, green and blue")
            elif page.colours > 1:
                parts.append(
                    f"{page.samples} channels, the first {page.colours} are read as {_COLOURS[page.photometric]}"
                )
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """The strips or tiles of a page: (position, length) of each, and the tables that its JPEG data share."""

    places: list[tuple[int, int]]
    jpeg_tables: bytes

    def read(self, file: IO[bytes], number: int) -> bytes:
        """The data of a block, JPEG data complete with their tables; the position in the file is kept."""
        position = file.tell()
        file.seek(self.places[number][0])
        data = file.read(self.places[number][1])
        file.seek(position)
        return data[:2] + self.jpeg_tables + data[2:] if data and self.jpeg_tables else data


def read_tiff(file: IO[bytes]) -> TiffFile | None:
    """The pages of an open file, whose position is kept; None for a file of another kind.

    Raises what Pillow raises for damaged directories.
    """
    position = file.tell()
    try:
        file.seek(0)
        head = file.read(16)
        if head[:4] not in MAGIC:
            return None
        return _parse(file, head)
    finally:
        file.seek(position)


def read_blocks(file: IO[bytes], page: TiffPage) -> StoredBlocks:
    """Where the strips or tiles of a page are stored; the position in the file is kept."""
    position = file.tell()
    file.seek(0)
    head = file.read(16)
    tags = TiffImagePlugin.ImageFileDirectory_v2(head if 43 in head[2:4] else head[:8])
    for _ in range(page.directory):
        file.seek(tags.next)
        tags.load(file)
    tables = tags.get(_JPEG_TABLES, b"")
    offsets = _as_tuple(tags.get(_TILE_OFFSETS, tags.get(_STRIP_OFFSETS, ())))
    lengths = _as_tuple(tags.get(_TILE_LENGTHS, tags.get(_STRIP_LENGTHS, ())))
    file.seek(position)
    places = [(int(offset), int(length)) for offset, length in zip(offsets, lengths, strict=False)]
    return StoredBlocks(places, bytes(tables)[2:-2] if isinstance(tables, bytes) else b"")


def _parse(file: IO[bytes], head: bytes) -> TiffFile:
    big = 43 in head[2:4]
    tags = TiffImagePlugin.ImageFileDirectory_v2(head if big else head[:8])
    pages: list[TiffPage] = []
    seen: set[int] = set()
    while tags.next and tags.next not in seen and len(seen) < MOST_PAGES:
        seen.add(tags.next)
        file.seek(tags.next)
        tags.load(file)
        if not int(tags.get(_SUBFILE, 0)) & _REDUCED_OR_MASK or not pages:
            pages.append(_page(tags, len(seen)))
    if not pages:
        raise DatasetError(mismatch("a TIFF with an image", "one without"))
    channels, stride = _channel_pages(pages[0].description, len(pages))
    return TiffFile(tuple(pages), channels, stride)


def _page(tags: TiffImagePlugin.ImageFileDirectory_v2, directory: int) -> TiffPage:
    compression, photometric = int(tags.get(_COMPRESSION, 1)), int(tags.get(_PHOTOMETRIC, 0))
    by_jpeg = 3 if compression == 7 and photometric in (2, 6) else 1
    bits = tuple(map(int, _as_tuple(tags.get(_BITS, (1,)))))
    formats = set(map(int, _as_tuple(tags.get(_FORMAT, (_UNSIGNED,)))))
    format_ = formats.pop() if len(formats) == 1 else 0
    description = tags.get(_DESCRIPTION, "")
    return TiffPage(
        directory=directory,
        height=int(tags[_HEIGHT]),
        width=int(tags[_WIDTH]),
        bits=bits,
        samples=int(tags.get(_SAMPLES, by_jpeg)),
        sample_format=_UNSIGNED if format_ == 4 else format_,  # 4: undefined, and written for unsigned
        photometric=photometric,
        planar=int(tags.get(_PLANAR, 1)) == 2,
        compression=compression,
        extra=tuple(map(int, _as_tuple(tags.get(_EXTRA, ())))),
        orientation=_orientation(tags),
        description=description if isinstance(description, str) else "",
    )


def _orientation(tags: TiffImagePlugin.ImageFileDirectory_v2) -> int:
    """1..8, of the tag or else of XMP."""
    orientation = tags.get(_ORIENTATION)
    if orientation is None and isinstance(xmp := tags.get(_XMP), bytes):
        found = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)
        orientation = int(found[1]) if found else 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _as_tuple(value: object) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _channel_pages(description: str, pages: int) -> tuple[int, int]:
    """(channels, stride): how many pages of a TIFF by ImageJ or in OME's form are channels of one image."""
    if description.startswith("ImageJ="):
        found = re.search(r"^channels=(\d+)\s*$", description, re.MULTILINE)
        channels = int(found[1]) if found else 1
        return (channels, 1) if channels > 1 and pages % channels == 0 else (1, 1)
    if "<OME" in description and (found := re.search(r"<(?:\w+:)?Pixels\b[^>]*>", description)):
        sizes = {axis: int(count) for axis, count in re.findall(r'\bSize([CZT])="(\d+)"', found[0])}
        order = re.search(r'\bDimensionOrder="XY([CZT]{3})"', found[0])
        channels = sizes.get("C", 1)
        if order and channels > 1 and pages == channels * sizes.get("Z", 1) * sizes.get("T", 1):
            before = order[1][: order[1].index("C")]
            return channels, int(np.prod([sizes.get(axis, 1) for axis in before], dtype=int))
    return 1, 1


def _which(page: int) -> str:
    return "the first" if page == 1 else f"page {page}"
