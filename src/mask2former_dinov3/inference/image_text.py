"""Images written as text: data URIs and base64, as web pages and JSON hold them."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from ..errors import DatasetError, mismatch

_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_SHORTEST = 64  # characters of base64 without its prefix; shorter texts are names of files
_SHOWN = 40  # characters of a text in a message


def bytes_of_text(text: str) -> bytes | None:
    """The bytes of an image file in a data URI (data:image/png;base64,...) or in base64; None for any other text.

    Base64 without a prefix differs from a path by its characters, its length, and that no file of this name exists.
    Raises DatasetError for a data URI whose content is no base64, with only the beginning of the text.
    """
    prefix = _DATA_URI.match(text)
    if prefix is None and text[:5].lower() == "data:":
        raise _refuse(text)
    if prefix is None and not _is_base64(text):
        return None
    try:
        return base64.b64decode("".join(text[prefix.end() if prefix else 0 :].split()), validate=True)
    except binascii.Error as error:
        raise _refuse(text) from error


def _is_base64(text: str) -> bool:
    if len(text) < _SHORTEST or not re.fullmatch(r"[A-Za-z0-9+/\s]+=*\s*", text):
        return False
    try:
        return not Path(text).exists()
    except OSError:  # too long for a name
        return True


def _refuse(text: str) -> DatasetError:
    got = f"{text[:_SHOWN]}... ({len(text):,} characters)" if len(text) > _SHOWN else text
    return DatasetError(f"image: {mismatch('a data URI such as data:image/png;base64,...', got)}")
