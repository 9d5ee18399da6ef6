"""Where the pictures of a page lie: in the page itself, or as files beside it when the page would become too large."""

from __future__ import annotations

import base64
import secrets
import shutil
from pathlib import Path

from ..atomic_files import check_writable, make_folder
from ..data.fitting import PixelArray
from .html_page import Html
from .pictures import encode_jpeg

LARGEST_PAGE = 30_000_000  # bytes


class PictureStore:
    """Collects the pictures of a page. The page holds marks until `place` replaces them, when all sizes are known."""

    def __init__(self) -> None:
        self._pictures: list[bytes] = []
        self._mark = f"picture {secrets.token_hex(8)} "  # that no text of the page holds by chance or on purpose

    def add(self, picture: PixelArray) -> str:
        """Keep a picture (h, w, 3) as JPEG; returns the mark to use as its address."""
        self._pictures.append(encode_jpeg(picture))
        return f"{self._mark}{len(self._pictures) - 1:06}"

    def place(self, page: Html, folder: Path, name: str, largest: int = LARGEST_PAGE) -> Html:
        """The page with the pictures in it, or, if it would be larger than `largest` bytes, as files in `folder/name`.

        What lies in that folder from an earlier page is removed. Raises CheckpointError when it cannot be written.
        """
        beside = folder / name
        if beside.is_dir():
            shutil.rmtree(beside)
        inside = sum(len(picture) for picture in self._pictures) * 4 // 3 + len(page) <= largest
        if not inside:
            check_writable(beside)
            make_folder(beside)
        parts = page.split(f'"{self._mark}')
        done = [parts[0]]
        for part in parts[1:]:
            number, rest = int(part[:6]), part[6:]
            if inside:
                text = base64.b64encode(self._pictures[number]).decode("ascii")
                done.append(f'"data:image/jpeg;base64,{text}{rest}')
            else:
                (beside / f"{number:06}.jpg").write_bytes(self._pictures[number])
                done.append(f'"{name}/{number:06}.jpg{rest}')
        return Html("".join(done))
