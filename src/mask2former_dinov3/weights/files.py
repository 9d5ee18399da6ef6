"""Read files of weights as data only: no code in them is run, and a damaged file is reported as such."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError, mismatch

WRAPPERS = ("state_dict", "model", "teacher")  # keys under which training scripts store a state dict
PREFIXES = ("module.", "backbone.")
CHECKSUM_SUFFIX = ".sha256"
MAX_HEADER = 100_000_000  # bytes, the limit of safetensors
# First bytes of other files that are given as weights.
OTHER_FILES = (
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself with `git lfs pull`"),
    (b"<", "a web page; links to Meta's weights expire, so ask for new ones"),
    (b"{", "JSON"),
    (b"\x08", "possibly an ONNX model"),
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a `.safetensors` or `.pth` file on the CPU, memory-mapped where the format allows.

    A state dict inside `state_dict`, `model` or `teacher`, or with the prefix `module.` or `backbone.`, is extracted.
    Raises CheckpointError for any other content, or when the file cannot be opened.
    """
    stored = _read_tensors(path)
    for wrapper in WRAPPERS:
        if isinstance(stored, Mapping) and isinstance(stored.get(wrapper), Mapping):
            stored = stored[wrapper]
    state = _check_state(path, stored)
    for prefix in PREFIXES:
        inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        if inside:  # other entries, such as a projection head, do not belong to the backbone
            state = inside
    return dict(state)


def read_own_state(path: Path) -> dict[str, Tensor]:
    """As `read_weights`, for a file of a model folder, whose names are taken as they are."""
    return dict(_check_state(path, _read_tensors(path)))


def write_checksum(file: Path) -> None:
    """Write the SHA-256 of a file beside it, as `sha256sum` does and checks. Raises OSError."""
    file.with_name(file.name + CHECKSUM_SUFFIX).write_text(f"{sha256_of(file)}  {file.name}\n", encoding="ascii")


def check_checksum(file: Path, checksum: Path) -> None:
    """Raise CheckpointError unless a file has the SHA-256 that `write_checksum` has written. Raises OSError."""
    with checksum.open("rb") as stored:
        words = stored.read(1024).split()
    expected = words[0].decode("ascii", "replace").lower() if words else "nothing"
    if (found := sha256_of(file)) != expected:
        advice = f"fetch it again; if you have changed the weights yourself, remove {checksum.name}"
        wanted = f"the SHA-256 in {checksum.name}, {expected[:12]}…"
        raise CheckpointError(f"{file}: {mismatch(wanted, f'{found[:12]}…', advice)}")


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's content, as hexadecimal digits. Raises OSError."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _read_tensors(path: Path) -> object:
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise CheckpointError(f"{path}: {mismatch('a file of weights', error.strerror or str(error))}") from error
    try:
        if start.startswith((b"PK\x03\x04", b"\x80")):
            mapped = start.startswith(b"PK") or None
            found: object = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
            return found
        if _is_safetensors(start):
            return load_file(path)
    except UnpicklingError as error:
        got = f"a file that holds more than weights ({first_reason(error)}); none of it was run"
        raise CheckpointError(
            f"{path}: {mismatch('a plain state dict', got, 'ask its authors for a .safetensors file')}"
        ) from error
    except (RuntimeError, EOFError, SafetensorError) as error:
        got = f"one that is cut or damaged, {path.stat().st_size:,} bytes ({first_reason(error)})"
        raise CheckpointError(f"{path}: {mismatch('a whole file', got, 'fetch it again')}") from error
    raise CheckpointError(f"{path}: {mismatch('a .safetensors or .pth file of weights', _describe(start))}")


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a `.safetensors` file; no weight is read. Raises CheckpointError when the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError as error:
        got = f"one that is cut or damaged ({first_reason(error)})"
        raise CheckpointError(f"{path}: {mismatch('a whole file', got, 'fetch it again')}") from error


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in any file that `read_weights` reads; of `.safetensors` as stored, without reading weights."""
    if path.suffix == ".safetensors":
        return shapes_in(path)
    return {key: tuple(tensor.shape) for key, tensor in read_weights(path).items()}


def _is_safetensors(start: bytes) -> bool:
    """Eight bytes of length, then a JSON object (the format's specification)."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER


def _describe(start: bytes) -> str:
    if not start:
        return "an empty file"
    text = next((text for begin, text in OTHER_FILES if start.lstrip().startswith(begin)), None)
    return text or f"a file that begins with {start[:8]!r}"


def save_tensors(tensors: object, path: Path) -> None:
    """torch.save, with an OSError for a full disk, which torch reports as a RuntimeError."""
    try:
        torch.save(tensors, path)
    except RuntimeError as error:
        raise OSError(f"{path.name}: {str(error).partition(chr(10))[0]}") from error


def first_reason(error: Exception) -> str:
    """One line of an error of torch or safetensors, without torch's advice to load unsafely."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    otherwise = "it ends too early" if isinstance(error, EOFError) else "no reason given"
    return (reasons or lines or [otherwise])[0].split(". ")[0].rstrip(".")[:200]


def _check_state(path: Path, stored: object) -> Mapping[str, Tensor]:
    if not isinstance(stored, Mapping) or not stored or not all(isinstance(x, Tensor) for x in stored.values()):
        kind = type(stored).__name__
        some = f" of {', '.join(map(repr, list(stored)[:4]))}" if isinstance(stored, Mapping) else ""
        raise CheckpointError(f"{path}: {mismatch('a state dict, names and tensors', f'a {kind}{some}')}")
    return stored
