"""The verb `check-export`: compare an exported file with its model again, in the runtime that will be used."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..atomic_files import check_writable
from ..data.layout import Split
from ..errors import CheckpointError, OptionError, mismatch
from ..evaluation.evaluate import check_paths
from ..extras import require
from ..folder_lock import hold_folder
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..inference.onnx_model import OnnxModel
from ..inference.onnx_session import TORCH_PROGRAM, open_runtime
from ..inference.predictor import load_network
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from .ap_check import compare_ap
from .check_images import change_canvas, make_batches, prepare_reading
from .file_metadata import build_metadata, compare_metadata
from .onnx_check import compare_outputs
from .parity import FileComparison, add_parity, describe_file

# Fields without which the outputs of file and model cannot be compared at all.
_SHAPES = ("classes", "mean", "num_queries", "mask_stride")


@dataclass(frozen=True)
class CheckedExport:
    """A comparison, the record that it was added to, and how many entries about another file it replaced there."""

    comparison: FileComparison
    record: Path
    replaced: int

    def text(self) -> str:
        """The result for people."""
        note = f"note: {self.replaced} earlier entries of {self.record.name} were about another file and are removed\n"
        return f"{self.comparison.text()}\n{note if self.replaced else ''}{self.record}"


def check_export(
    file: Path,
    model: str | Path,
    *,
    runtime: str | None = None,
    full_precision: bool = True,
    images: Path | None = None,
    extra_images: str | None = None,
    annotations: Split | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: bool = False,
) -> CheckedExport:
    """Compare an exported file in a runtime with its model (folder or hub id) in torch on the CPU, as `export` does.

    runtime, full_precision: as `open_runtime` takes them; without a runtime, onnxruntime on the CPU, or torch for a
    .pt2 file; with full_precision false the limits of an fp32 file are
    those of fp16. images, extra_images, annotations: as `export` takes them. The result is added to the record beside
    the file, also if both differ. Raises OptionError for a runtime that is not there, CheckpointError for what cannot
    be loaded and for a file that is of another model; see `CheckedExport.comparison` for differences.
    """
    is_program = file.suffix == TORCH_PROGRAM
    if not is_program:
        require("export", "check-export", "onnx")
    runtime = runtime or ("torch" if is_program else "onnxruntime")
    if annotations is not None:
        check_paths(annotations)
    parent = file.absolute().parent
    with tempfile.TemporaryDirectory() as folder:
        session = open_runtime(file, runtime, full_precision=full_precision, profile=Path(folder))
        exported = OnnxModel(file, session=session).eval()
        check_writable(parent)
        network, own = load_network(model, "cpu")
        processor = change_canvas(own, *exported.metadata.canvas)
        metadata = differing_metadata(file, model, network, processor, exported)
        prepare_reading(processor, images, extra_images)
        batches = make_batches(images, processor, not exported.fixed)
        say(f"comparing with torch on {sum(len(prepared) for _, prepared in batches)} images")
        precision = exported.metadata.precision
        if precision == "fp32" and not full_precision:
            precision = "fp16"
        agreement = compare_outputs(network, exported, batches, precision)
    places = session.count_places()
    check_places(session.runtime, places)
    comparison = FileComparison(
        command="check-export",
        model=str(model),
        images=images,
        runtime=session.runtime,
        full_precision=full_precision,
        agreement=agreement,
        places=places,
        metadata=tuple(metadata),
    )
    if annotations is not None:
        say("computing AP of the model and of the file")
        scores = compare_ap(network, exported, processor, annotations, precision, progress=progress)
        comparison = replace(comparison, average_precision=scores)
    with hold_folder(parent, "file", "check-export", f".{file.name}.in-use.json"):
        return CheckedExport(comparison, *add_parity(file, describe_file(file, exported), comparison))


def differing_metadata(
    file: Path,
    model: str | Path,
    network: Mask2FormerDinov3ForInstanceSegmentation,
    processor: Mask2FormerDinov3ImageProcessor,
    exported: OnnxModel,
) -> list[str]:
    """`compare_metadata` of a file and a model. Raises CheckpointError where the outputs cannot be compared."""
    expected = build_metadata(network, processor, Path(model))
    differences = compare_metadata(expected, exported.metadata)
    sizes = [name for name in _SHAPES if _size(getattr(expected, name)) != _size(getattr(exported.metadata, name))]
    if sizes:
        advice = "name the model that the file was exported from, or export it again"
        got = "a file of another network"
        lines = "\n  ".join(differences)
        raise CheckpointError(f"{file}: {mismatch(f'an export of {model}', got, advice)}\n  {lines}")
    return differences


def check_places(runtime: str, places: dict[str, int]) -> None:
    """Raise OptionError if no operator was computed where it was asked for.

    runtime: name of the session. places: its `count_places`.
    """
    wanted = runtime.partition(":")[2]
    if not any(place == wanted or place.startswith(f"{wanted}.") for place in places):
        got = f"{', '.join(places) or 'another one'} for all of them, to which the runtime fell back"
        raise OptionError("runtime", f"{wanted} for operators of the file", got, "name the one that computes them")


def _size(value: object) -> object:
    return len(value) if isinstance(value, list) else value
