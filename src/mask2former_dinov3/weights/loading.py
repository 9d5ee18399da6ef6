"""transformers' `from_pretrained`, but sizes are compared before memory is taken, and every weight must be there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, logging

from .files import read_json, shapes_in

SLACK = 1_000_000  # numbers that a network may have beyond its file: output norms of a Swin, positions


def load_config(source: str, token: str | None = None) -> PreTrainedConfig:
    """The config of a folder or hub id. Raises ValueError when it asks for more layers than its file has tensors.

    Asked before transformers makes a config of it, which lists the layers.
    """
    file = weights_file(source, token)
    if file is not None and file.suffix == ".safetensors":
        deepest = _deepest(read_json(Path(str(cached_file(source, "config.json", token=token)))))
        tensors = len(shapes_in(file))
        if deepest > tensors:
            raise ValueError(f"config.json asks for {deepest:,} layers, {file.name} has {tensors:,} tensors")
    # Else code that a folder brings might be offered to the user to be run.
    config: PreTrainedConfig = AutoConfig.from_pretrained(source, token=token, trust_remote_code=False)
    return config


def load_pretrained(
    kind: Any,
    source: str,
    config: PreTrainedConfig,
    token: str | None = None,
    may_lack: tuple[str, ...] = (),
    whole: bool = False,
) -> PreTrainedModel:
    """A network of class `kind` in float32 from a folder or hub id.

    may_lack: beginnings of names that may be new. whole: nothing in the file may be left over, such as a classifier.

    Raises ValueError when config and weights do not belong together; OSError or RuntimeError as transformers does.
    """
    file = weights_file(source, token)
    if file is not None and file.suffix == ".safetensors":
        check_size(kind, config, file)
    model: PreTrainedModel
    with _quiet():  # its report of names left over is meant for whole models, and what counts is said below
        model, report = kind.from_pretrained(
            source, config=config, token=token, output_loading_info=True, dtype=torch.float32
        )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(may_lack))
    if missing:
        raise ValueError(
            f"{len(missing)} weights are missing, e.g. {', '.join(missing[:3])}; "
            f"the file is cut, or it holds another network than its config.json says"
        )
    left = sorted(report["unexpected_keys"]) if whole else []
    if left:
        raise ValueError(f"{len(left)} weights are not those of its config.json, e.g. {', '.join(left[:3])}")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def weights_file(source: str, token: str | None = None) -> Path | None:
    """The one file of weights of a folder or hub id, None where there are several or none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        found = cached_file(source, name, token=token, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            return Path(found)
    return None


def check_size(kind: Any, config: PreTrainedConfig, file: Path) -> None:
    """Raise ValueError when config.json makes a network that the file cannot fill, before it is made."""
    stored = sum(math.prod(shape) for shape in shapes_in(file).values())
    with torch.device("meta"):
        wanted = sum(parameter.numel() for parameter in kind(config).parameters())
    if wanted > 1.1 * stored + SLACK:
        raise ValueError(
            f"config.json makes a network of {wanted:,} numbers, {file.name} holds {stored:,}: "
            f"they do not belong together, or the file is cut"
        )


def _deepest(values: Any, name: str = "") -> int:
    """The largest number of layers that a config asks for anywhere in it."""
    if isinstance(values, dict):
        return max((_deepest(value, str(key)) for key, value in values.items()), default=0)
    if isinstance(values, list | tuple):
        return max((_deepest(value, name) for value in values), default=0)
    return values if isinstance(values, int) and ("layers" in name or name == "depths") else 0
