"""Files of weights, read as data only: nothing in them is ever run, and a broken one says what it looks like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

WRAPPERS = ("state_dict", "model", "teacher")  # what training scripts put around a state dict
PREFIXES = ("module.", "backbone.")
MOST_HEADER = 100_000_000  # bytes, safetensors' own limit
# How files begin that are taken for weights.
PRETENDERS = (
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself with `git lfs pull`"),
    (b"<", "a web page; links to Meta's weights expire, so ask for new ones"),
    (b"{", "JSON"),
    (b"\x08", "an ONNX model, perhaps"),
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a `.safetensors` or `.pth` file, on the CPU and mapped, not read, where the format allows.

    A state dict inside `state_dict`, `model` or `teacher`, or under `module.` or `backbone.`, is taken out. Raises
    ValueError for whatever else is in the file, OSError when it cannot be opened.
    """
    with path.open("rb") as file:
        start = file.read(32)
    try:
        if start.startswith((b"PK\x03\x04", b"\x80")):
            stored = torch.load(path, map_location="cpu", mmap=start.startswith(b"PK") or None, weights_only=True)
        elif _is_safetensors(start):
            stored = load_file(path)
        else:
            raise ValueError(f"{path}: expected a .safetensors or .pth file of weights, got {_looks_like(start)}")
    except UnpicklingError as error:
        raise ValueError(
            f"{path}: it holds more than weights ({_reason(error)}), and nothing of it was run. Only plain state dicts "
            f"are read: ask its makers for a .safetensors file"
        ) from error
    except (RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(
            f"{path}: cut or damaged, {path.stat().st_size:,} bytes ({_reason(error)}); fetch it again"
        ) from error
    return _unwrapped(path, stored)


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a `.safetensors` file; no weight is read. Raises ValueError when it is cut or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError as error:
        raise ValueError(f"{path}: cut or damaged ({_reason(error)})") from error


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file that `read_weights` reads; of `.safetensors` as stored, and no weight is read."""
    if path.suffix == ".safetensors":
        return shapes_in(path)
    return {key: tuple(tensor.shape) for key, tensor in read_weights(path).items()}


def _is_safetensors(start: bytes) -> bool:
    """Eight bytes of length, then a JSON object (safetensors' format)."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MOST_HEADER


def _looks_like(start: bytes) -> str:
    if not start:
        return "an empty file"
    text = next((text for begin, text in PRETENDERS if start.lstrip().startswith(begin)), None)
    return text or f"a file that begins with {start[:8]!r}"


def _reason(error: Exception) -> str:
    """One line; torch's advice to load without safety is not ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (told or lines or [type(error).__name__])[0].split(". ")[0].rstrip(".")[:200]


def _unwrapped(path: Path, stored: Any) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(stored, Mapping) and isinstance(stored.get(wrapper), Mapping):
            stored = stored[wrapper]
    if not isinstance(stored, Mapping) or not stored or not all(isinstance(x, Tensor) for x in stored.values()):
        kind = type(stored).__name__
        some = f" of {', '.join(map(repr, list(stored)[:4]))}" if isinstance(stored, Mapping) else ""
        raise ValueError(f"{path}: expected a state dict, names and tensors, got a {kind}{some}")
    for prefix in PREFIXES:
        inside = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}
        if inside:  # what stands beside it, such as a projection head, is not the backbone
            stored = inside
    return dict(stored)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError that names the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(found).__name__}")
    return found
