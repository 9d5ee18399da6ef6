"""The record of an exported file's comparisons with its model: FILE.parity.json beside the file.

`export` writes it; `check-export` adds an entry per run. The sums of the file's content say which file was compared.
"""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ..atomic_files import write_text
from ..errors import CheckpointError, mismatch
from ..inference.onnx_model import OnnxModel, data_file
from ..inference.onnx_session import TORCH_PROGRAM
from ..json_files import read_json_object
from ..version import __version__
from ..weights.files import sha256_of
from .ap_check import ApComparison
from .onnx_check import Agreement

if TYPE_CHECKING:
    from onnx import ModelProto

PARITY_VERSION = 1  # of the layout of the file
_EXPECTED = "the record that `export` writes (a JSON object)"


@dataclass(frozen=True)
class FileComparison:
    """One comparison of a file with its model.

    command: export or check-export. model: as the user gave it. images: the folder of the compared images, None for
    the bundled sample. runtime: as `open_runtime` takes it. full_precision: whether it was asked to compute an fp32
    file in fp32. places: operators of each provider. metadata: sentences about fields of the metadata that are not the
    model's.
    """

    command: str
    model: str
    images: Path | None
    runtime: str
    full_precision: bool
    agreement: Agreement
    average_precision: ApComparison | None = None
    places: dict[str, int] = field(default_factory=dict)
    metadata: tuple[str, ...] = ()

    def differences(self) -> list[str]:
        """All that exceeds the limits, one sentence each; empty if file and model agree."""
        of_ap = self.average_precision.differences() if self.average_precision else []
        return [*self.metadata, *self.agreement.differences(), *of_ap]

    def text(self) -> str:
        """The result for people."""
        where = ", ".join(f"{count} operators on {place}" for place, count in self.places.items())
        lines = [self.agreement.text(), *([f"{self.runtime}: {where}"] if where else [])]
        return "\n".join(lines + ([self.average_precision.text()] if self.average_precision else []))

    def to_json(self) -> dict[str, object]:
        """An entry of `comparisons`."""
        return {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": self.command,
            "agrees": not self.differences(),
            "differences": self.differences(),
            "model": self.model,
            "images": "the bundled sample" if self.images is None else str(self.images),
            "runtime": self.runtime,
            "limits_of": self.agreement.precision,
            "runtime_precision": "fp32" if self.full_precision else "default",
            "operators": self.places,
            "versions": versions(),
            "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            **self.agreement.to_json(),
            "average_precision": self.average_precision.to_json() if self.average_precision else None,
        }


def parity_file(path: Path) -> Path:
    """The record of an exported file: `model.onnx.parity.json` beside `model.onnx`."""
    return path.with_name(f"{path.name}.parity.json")


def describe_file(path: Path, exported: OnnxModel) -> dict[str, object]:
    """What a file is, for its record. path: of the file; exported: the same file, opened.

    size: (height, width) of the images that it takes, null for a dynamic one.
    """
    data = data_file(path)
    weights = {"data_sha256": sha256_of(data), "data_bytes": data.stat().st_size} if data.exists() else {}
    size = exported.session.input_shape[2:]
    return {
        "sha256": sha256_of(path),
        "bytes": path.stat().st_size,
        **weights,
        "opset": None if path.suffix == TORCH_PROGRAM else _opset(path),
        "precision": exported.metadata.precision,
        "dynamic": not exported.fixed,
        "size": list(size) if exported.fixed else None,
        "canvas": exported.metadata.canvas,
        "image_scale": exported.metadata.image_scale,
        "outputs": exported.session.outputs,
        "exported_with": exported.metadata.producer,
    }


def _opset(path: Path) -> dict[str, int]:
    """The versions of the operators of an .onnx file, by their domain."""
    import onnx

    graph: ModelProto = onnx.load(path, load_external_data=False)
    return {entry.domain or "ai.onnx": entry.version for entry in graph.opset_import}


def write_parity(path: Path, file: dict[str, object], comparison: FileComparison) -> Path:
    """Start the record of a file that has just been exported; returns its path. file: from `describe_file`."""
    return _write(path, file, [comparison.to_json()])


def add_parity(path: Path, file: dict[str, object], comparison: FileComparison) -> tuple[Path, int]:
    """Add a comparison to the record of a file; returns the record's path, and the number of entries left out.

    Those are the entries of a record that is about another file of this name. Raises CheckpointError for a record that
    cannot be read.
    """
    record = parity_file(path)
    entries, about = read_parity(record) if record.exists() else ([], {})
    keys = ("sha256", "data_sha256")
    is_other = [about.get(key) for key in keys] != [file.get(key) for key in keys]
    _write(path, file, [*([] if is_other else entries), comparison.to_json()])
    return record, len(entries) if is_other else 0


def read_parity(record: Path) -> tuple[list[Any], dict[str, Any]]:
    """The comparisons in a record, and what it says about its file. Raises CheckpointError for another content."""
    content = read_json_object(record, _EXPECTED, raises=CheckpointError)
    entries, about = content.get("comparisons"), content.get("file")
    if content.get("format_version") != PARITY_VERSION or not isinstance(entries, list) or not isinstance(about, dict):
        advice = "remove it or export again"
        raise CheckpointError(f"{record}: {mismatch(_EXPECTED, 'another content', advice)}")
    return entries, about


def versions() -> dict[str, str]:
    """The packages that a comparison depends on -> their versions; of the runtimes, those that are in use."""
    found = {"mask2former-dinov3": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    in_use = {name: sys.modules[name] for name in ("onnx", "onnxruntime", "openvino") if name in sys.modules}
    return {**found, **{name: str(module.__version__) for name, module in in_use.items()}}


def _write(path: Path, file: dict[str, object], entries: list[Any]) -> Path:
    record = parity_file(path)
    content = {"format_version": PARITY_VERSION, "file": {"name": path.name, **file}, "comparisons": entries}
    write_text(record, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return record
