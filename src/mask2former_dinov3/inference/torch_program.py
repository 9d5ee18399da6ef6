"""A .pt2 file of `export`: torch runs the exported graph, without the code of this package."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from ..errors import CheckpointError, mismatch
from .onnx_session import explain_run

METADATA_FILE = "metadata.json"  # within the file: one object, its keys those of the properties of an .onnx file
_EXPECTED = "a .pt2 file of `mask2former-dinov3 export`"

Properties: TypeAlias = Mapping[str, str]


class TorchSession:
    """An exported program on the CPU, see `onnx_session.Session`. It always computes all outputs."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for what is no such file. torch unpickles parts of some files: open what you trust."""
        program, self.properties = load_program(path)
        nodes = {node.name: node for node in program.graph.nodes}
        self._inputs = [str(name) for name in program.graph_signature.user_inputs]
        shape = nodes[self._inputs[0]].meta["val"].shape
        self.runtime = "torch:CPU"
        self.input_shape: list[int | str | None] = [side if isinstance(side, int) else str(side) for side in shape]
        self.outputs: list[str] = json.loads(self.properties["outputs"])
        self._count = sum(node.op == "call_function" for node in program.graph.nodes)
        self._module = program.module()

    @torch.no_grad()
    def run(self, feed: Mapping[str, NDArray[np.generic]], names: tuple[str, ...]) -> list[NDArray[Any]]:
        with explain_run(self.runtime):
            found = self._module(*(torch.from_numpy(feed[name]) for name in self._inputs))
        outputs = dict(zip(self.outputs, found, strict=True))
        return [outputs[name].numpy() for name in names]

    def count_places(self) -> dict[str, int]:
        """All operators of the graph, on the CPU."""
        return {"CPU": self._count}


def save_program(program: ExportedProgram, path: Path, properties: Properties, outputs: Sequence[str]) -> None:
    """Write a program with its metadata: key -> JSON text, as in an .onnx file, and the names of its outputs."""
    content = {"outputs": list(outputs), **{key: json.loads(text) for key, text in properties.items()}}
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(content, ensure_ascii=False)})


def load_program(path: Path) -> tuple[ExportedProgram, Properties]:
    """The inverse of `save_program`. Raises CheckpointError for what is no such file."""
    extra = {METADATA_FILE: ""}
    with _explain_load(path):
        program = torch.export.load(path, extra_files=extra)
        content = json.loads(extra[METADATA_FILE])
        return program, {key: json.dumps(content[key], ensure_ascii=False) for key in ("outputs", *content)}


@contextmanager
def _explain_load(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # torch raises errors of many classes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        got = f"a file that torch cannot read ({reason})"
        raise CheckpointError(f"{path}: {mismatch(_EXPECTED, got, 'export the model again')}") from error
