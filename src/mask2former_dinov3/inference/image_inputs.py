"""What people hold as images (arrays of any type, tensors, bytes, addresses) as the processor takes them.

Nothing is guessed: where a shape or a range of values has two meanings, the error says which, and what to do.

| given | read as |
|---|---|
| a path, a PIL image of any mode, bytes or an open file of an image | image files are (`data.images`) |
| text that begins with http:// or https:// | the image file at that address |
| an array or a tensor (H, W, C) or (C, H, W), C channels of the model | its pixels |
| for a model of RGB also (H, W), one channel, or four | grey, or colours whose alpha is dropped |
| values of uint8 | they are |
| values of uint16, floats in 0..1 | scaled to 0..255; if the model has another `value_range`, by that |
"""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from http.client import HTTPException, IncompleteRead
from os import PathLike
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, Any, TypeAlias
from urllib.parse import quote, urlsplit

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..data.images import check_channel_count, decode_image
from ..data.sample_values import SampleType, to_eight_bits
from ..errors import DatasetError, OptionError, mismatch
from ..read_options import FULL, ReadOptions
from .load_images import ImageLike

HeldImage: TypeAlias = str | PathLike[str] | Image.Image | NDArray[Any] | torch.Tensor | bytes | IO[bytes]
"""One image, see the table of this module."""

TIMEOUT = 10.0  # seconds for an address
MOST_BYTES = 256 * 2**20  # of a file behind an address
_CHUNK = 2**18
_ONE = (str, bytes, bytearray, memoryview, PathLike, Image.Image)


def is_one_image(images: object) -> bool:
    """Whether this is one image, and no collection of them; an array or a tensor of four dimensions holds several."""
    if isinstance(images, np.ndarray | torch.Tensor):
        return images.ndim < 4
    return isinstance(images, _ONE) or hasattr(images, "read") or not isinstance(images, Iterable)


def each_image(images: HeldImage | Iterable[HeldImage]) -> Iterator[HeldImage]:
    """The images of a collection one by one, of a generator as it makes them; or the one image."""
    if isinstance(images, dict):
        raise OptionError("images", "an image, or a list of images", "a dict", "give its values as a list")
    if is_one_image(images):
        yield images  # type: ignore[misc]
    else:
        yield from images  # type: ignore[misc]


def to_image(image: object, options: ReadOptions, channels: int, *, bgr: bool, timeout: float) -> ImageLike:
    """A path or PIL image as it is, anything else as an array (H, W, C) uint8, RGB for three channels.

    options, channels: of the model. bgr: arrays and tensors have their colours in OpenCV's order. timeout: seconds for
    an address. Raises OptionError for what is no image or has several meanings, DatasetError for bytes that cannot be
    read as an image and for addresses that give none.
    """
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = image.float().numpy() if image.dtype in (torch.bfloat16, torch.float16) else image.numpy()
    if isinstance(image, np.ndarray):
        return _from_array(image, options, channels, bgr=bgr)
    if bgr:
        raise OptionError("bgr", "arrays or tensors, whose order of colours is not stored", type(image).__name__)
    if is_address(image):
        return _decode(fetch_address(str(image), timeout), public_part(str(image)), options, channels)
    if isinstance(image, str | PathLike | Image.Image):
        return image
    if isinstance(image, bytes | bytearray | memoryview):
        return _decode(bytes(image), "image", options, channels)
    if hasattr(image, "read"):
        data = image.read()
        if isinstance(data, bytes):
            return _decode(data, str(getattr(image, "name", "image")), options, channels)
    expected = "a path, an address, bytes, a PIL image, an array or a tensor"
    advice = "cv2.imread gives None for a file that it cannot read" if image is None else ""
    raise OptionError("image", expected, type(image).__name__, advice)


def _from_array(pixels: NDArray[Any], options: ReadOptions, channels: int, *, bgr: bool) -> NDArray[np.uint8]:
    """(H, W, C) uint8 of an array, see the table of this module."""
    if 0 in pixels.shape:
        raise OptionError("image", "at least one pixel", f"an array of shape {pixels.shape}")
    values = _channels_last(pixels, channels)
    if bgr:
        if values.shape[2] not in (3, 4):
            raise OptionError("bgr", "an array of 3 or 4 channels", f"shape {pixels.shape}")
        values = values[:, :, [2, 1, 0, 3][: values.shape[2]]]
    if values.shape[2] == 4 and channels == 3:
        values = values[:, :, :3]  # alpha is dropped, as of files
    return np.ascontiguousarray(_eight_bits(values, options))


def _channels_last(pixels: NDArray[Any], channels: int) -> NDArray[Any]:
    """(H, W, c) of an array whose shape has one meaning for a model of so many channels."""
    counts = (1, 3, 4) if channels == 3 else (channels,)
    if pixels.ndim == 2 and 1 in counts:
        return pixels[:, :, None]
    last = pixels.ndim == 3 and pixels.shape[2] in counts
    first = pixels.ndim == 3 and pixels.shape[0] in counts
    if last and first and channels in (pixels.shape[0], pixels.shape[2]):
        # Of (3, W, 1) and (3, W, 4) only the model's own number is likely; of (3, W, 3) both are.
        last, first = pixels.shape[2] == channels, pixels.shape[0] == channels
    if last != first:
        return pixels if last else np.moveaxis(pixels, 0, 2)
    named = "grey (height, width), or 1, 3 or 4" if channels == 3 else str(channels)
    expected = f"{named} channels, first or last"
    advice = "both ends could be the channels: pad the image, or give a PIL image" if last else ""
    raise OptionError("image", expected, f"an array of shape {pixels.shape}", advice)


def _eight_bits(values: NDArray[Any], options: ReadOptions) -> NDArray[np.uint8]:
    """Values (H, W, c) of any type as 8 bits; grey becomes RGB."""
    kind = values.dtype
    if kind == np.uint8 or kind == np.uint16 or (options.value_range != FULL and kind.kind in "iuf"):
        try:
            return to_eight_bits(values, SampleType(bits=8 * kind.itemsize), options)
        except DatasetError as error:
            raise OptionError("image", "values that the model's value_range has", str(error)) from error
    if kind.kind == "f":
        low, high = float(values.min()), float(values.max())
        if low >= 0 and high <= 1:  # false for NaN
            return to_eight_bits(np.round(values * 255).astype(np.uint8), SampleType(), options)
        got = f"{kind} from {low:g} to {high:g}"
        advice = "convert values of 0..255 to uint8, and undo a normalisation: the model applies its own"
        raise OptionError("image", "floating point values in 0..1", got, advice)
    raise OptionError("image", "values of uint8, uint16 or floating point", str(kind), "convert them with astype")


def _decode(data: bytes, name: str, options: ReadOptions, channels: int) -> NDArray[np.uint8]:
    pixels = decode_image(data, name, options)
    check_channel_count(name, channels, pixels.shape[2])
    return pixels


def is_address(image: object) -> bool:
    """Whether this is text that begins with http:// or https://."""
    return isinstance(image, str) and image.lower().startswith(("http://", "https://"))


def fetch_address(address: str, timeout: float) -> bytes:
    """The bytes at an address. Raises DatasetError after `timeout` seconds, and for more than MOST_BYTES.

    The time is that of the whole request. The limits of sockets hold for each of its parts alone, and none holds for
    the look-up of a name, so another thread asks, which is left behind when the time is over.
    """
    answers: SimpleQueue[bytes | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(_fetch(address, timeout))
        except Exception as error:
            answers.put(error)

    Thread(target=ask, name="fetch", daemon=True).start()
    try:
        found = answers.get(timeout=timeout)
    except Empty:
        raise _too_slow(address, timeout) from None
    if isinstance(found, bytes):
        return found
    try:
        raise found
    finally:
        del found  # which holds this frame: sockets of the request are freed now


def _fetch(address: str, timeout: float) -> bytes:
    end = time.monotonic() + timeout
    parts: list[bytes] = []
    size = 0
    name = public_part(address)
    try:
        request = urllib.request.Request(_quoted(address), headers={"User-Agent": "mask2former-dinov3"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            while part := answer.read1(_CHUNK):
                size += len(part)
                parts.append(part)
                if size > MOST_BYTES:
                    raise DatasetError(f"{name}: {mismatch(f'at most {MOST_BYTES // 2**20} MiB', 'more')}")
                if time.monotonic() > end:
                    raise TimeoutError
            if getattr(answer, "length", None):  # bytes that the server has promised beside these
                raise IncompleteRead(b"")
    except TimeoutError:
        raise _too_slow(address, timeout) from None
    except DatasetError:
        raise
    except urllib.error.HTTPError as error:  # the answer of a server, with its number
        error.close()
        raise DatasetError(f"{name}: {mismatch('an address that gives an image', _one_line(error))}") from error
    except IncompleteRead as error:
        raise DatasetError(f"{name}: {mismatch('a whole file', 'one that is cut short')}") from error
    except (OSError, ValueError, HTTPException) as error:  # of urllib, of the address, of an answer that is not HTTP
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            raise _too_slow(address, timeout) from None
        raise DatasetError(f"{name}: {mismatch('an address that gives an image', _one_line(reason))}") from error
    return b"".join(parts)


def _too_slow(address: str, timeout: float) -> DatasetError:
    return DatasetError(f"{public_part(address)}: {mismatch(f'an image within {timeout:g} seconds', 'none')}")


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split()).removeprefix("got ")


def _quoted(address: str) -> str:
    """An address with escapes for spaces and letters beyond ASCII. Raises ValueError for one that is malformed."""
    parts = urlsplit(address)
    if "@" in parts.netloc:
        raise ValueError("a user or a password in it, which is not sent; fetch the file with another program")
    path, query = (quote(part, safe="%/:=&?~+!$,;'@()*[]") for part in (parts.path, parts.query))
    return parts._replace(path=path, query=query, fragment="").geturl()


def split_address(address: str) -> tuple[str, str, str]:
    """Scheme, host and path (with its "/") of an address, malformed or not.

    User, password and query are left out: they may hold secrets.
    """
    scheme, _, rest = re.split(r"[?#]", address, maxsplit=1)[0].partition("://")
    host, slash, path = rest.partition("/")
    return scheme, host.rpartition("@")[2], slash + path


def public_part(address: str) -> str:
    """An address for messages, without what may be secret."""
    scheme, host, path = split_address(address)
    return f"{scheme}://{host}{path}"[:200]


def check_timeout(timeout: float) -> None:
    """Raise OptionError for a timeout that is no number of seconds above 0."""
    if not 0 < timeout < float("inf"):
        raise OptionError("timeout", "a number of seconds above 0", timeout)
