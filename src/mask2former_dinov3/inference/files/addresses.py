"""Images that the user names by address: fetched into the output folder, so that results name files that exist."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from ...atomic_files import make_folder, write_bytes
from ...data.images import decode_header
from ...errors import DatasetError
from ..image_inputs import fetch_address, is_address, public_part, split_address

FOLDER = "downloads"
_SECONDS = 60.0  # for one image, which may be large
_LONGEST = 50  # characters of a name, of up to four bytes; file systems take 255 bytes


def fetch_addresses(
    inputs: Sequence[str | Path], output: Path, failed: list[tuple[str, str]], *, keep: bool
) -> list[str | Path]:
    """The inputs, with the file below `output` in the place of every address.

    keep: files that an earlier run fetched are not fetched again. An address that gives no image within a minute, or
    more than 256 MiB, is left out, and appended to `failed` as (input, reason).
    """
    files: list[str | Path] = []
    for given in inputs:
        if not is_address(given):
            files.append(given)
            continue
        path = output / FOLDER / _name_of(str(given))
        try:
            if not (path in files or (keep and path.exists())):
                data = fetch_address(str(given), _SECONDS)
                decode_header(data, public_part(str(given)))  # what is no image is not kept
                make_folder(path.parent)
                write_bytes(path, data)
            files.append(path)
        except DatasetError as error:
            failed.append((str(given), str(error)))
    return files


def _name_of(address: str) -> str:
    """The name of the file at an address, and a checksum of the whole, since several may have the same name."""
    path = Path(unquote(split_address(address)[2]))
    stem = re.sub(r"[^\w.-]+", "-", path.stem)[:_LONGEST].lstrip(".-") or "image"
    suffix = path.suffix if re.fullmatch(r"\.\w{1,8}", path.suffix) else ""
    return f"{stem}-{zlib.crc32(address.encode('utf-8', 'surrogatepass')):08x}{suffix}"
