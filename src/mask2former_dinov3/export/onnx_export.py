"""Export a model folder as one ONNX or torch.export file: torch traces it, a runtime runs it on images to compare."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from ..atomic_files import make_folder, publish
from ..canvas import PADDING, check_canvas, padded_size
from ..data.layout import Split
from ..errors import CheckpointError, OptionError
from ..evaluation.evaluate import check_paths
from ..extras import require
from ..folder_lock import hold_folder
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..inference.network import Network
from ..inference.onnx_model import DETECTIONS, INPUTS, LOGITS, OnnxMetadata, OnnxModel, data_file
from ..inference.onnx_session import TORCH_PROGRAM
from ..inference.predictor import load_network
from ..inference.torch_program import save_program
from ..model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from ..version import __version__
from .ap_check import ApComparison, compare_ap
from .check_images import (
    CHECKED_IMAGES,
    change_canvas,
    feed_of,
    make_batches,
    prepare_reading,
    read_images,
)
from .file_metadata import build_metadata, set_metadata
from .onnx_check import check_agreement
from .onnx_graph import ExportGraph, replace_positions, search_at_slices_only
from .parity import FileComparison, describe_file, parity_file, write_parity
from .precision import Feed, to_half, to_int8

PRECISIONS = ("fp32", "fp16", "int8")
OPSET = 20  # torch's default: the newest that its exporter, onnxruntime, its quantiser and OpenVINO all support
MAX_GRAPH_DETECTIONS = 100  # per image, in a graph with post-processing; COCO's limit
CALIBRATION_IMAGES = 64


@dataclass(frozen=True)
class Export:
    """An exported file: its size in bytes (with its data file, if it has one), and how it compares with its model."""

    path: Path
    size: int
    comparison: FileComparison

    def text(self) -> str:
        """The result for people."""
        record = parity_file(self.path)
        lines = [self.comparison.text(), f"{self.path} ({self.size / 1e6:.1f} MB)", str(record)]
        return "\n".join(lines if record.exists() else lines[:2])


def export(
    model: str | Path,
    output: Path,
    *,
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    precision: str = "fp32",
    with_postprocess: bool = False,
    images: Path | None = None,
    calibration_images: Path | None = None,
    extra_images: str | None = None,
    annotations: Split | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: bool = False,
    accept: Callable[[Mask2FormerDinov3ImageProcessor], None] = lambda processor: None,
) -> Export:
    """Export a model folder (or hub id) to the file `output`, which is written only if it passes the check.

    The record of the comparison (`parity_file`) goes beside it. output: .onnx, or .pt2 (`torch.export`, fp32 only).
    size: the canvas (height, width), by default the model's own; the file then takes batches of this size. dynamic: the
    file takes any height and width that are multiples of 32. with_postprocess: the graph also outputs scores, labels
    and masks at canvas size. images: the folder of images for the check, by default those of the bundled sample.
    calibration_images: the folder of images for int8, which requires it. extra_images: where the second files of these
    images are, for a model that takes channels from them. annotations: a split on which AP of model and file must agree
    too. say: called with each step, for people. accept: called with the model's image processor before the work, to
    refuse it.
    Raises ConfigError for options that are wrong or exclude each other, MissingExtraError without the packages,
    CheckpointError for a model that cannot be loaded, a check that fails, or a file that cannot be written.
    """
    check_request(output, size, dynamic, precision, calibration_images)
    if annotations is not None:
        check_paths(annotations)
    network, processor = load_for_export(model, size, dynamic)
    accept(processor)
    prepare_reading(processor, images, extra_images)
    batches = make_batches(images, processor, dynamic, CHECKED_IMAGES)
    calibration = [] if calibration_images is None else read_images(calibration_images, processor, CALIBRATION_IMAGES)
    metadata = build_metadata(network, processor, Path(model))
    parent = make_parent(output)
    with (
        hold_folder(parent, "output", "export", f".{output.name}.in-use.json"),
        tempfile.TemporaryDirectory(dir=parent, prefix=f".{output.name}.") as temporary,
    ):
        written = Path(temporary) / output.name
        say("tracing the network (a minute or more)")
        trace(network, processor, written, metadata, dynamic=dynamic, with_postprocess=with_postprocess)
        say(f"comparing with torch on {sum(len(prepared) for _, prepared in batches)} images")
        agreement = check_agreement(network, OnnxModel(written, "cpu"), batches)
        if precision != "fp32":
            say(f"converting to {precision}")
            feeds = [feed_of(processor, one) for one in calibration]
            written = lower_precision(written, replace(metadata, precision=precision), feeds)
            agreement = check_agreement(network, OnnxModel(written, "cpu"), batches)
        exported = OnnxModel(written, "cpu")
        comparison = FileComparison("export", str(model), images, exported.session.runtime, True, agreement)
        if annotations is not None:
            say("computing AP of the model and of the file")
            scores = check_ap(network, exported, processor, annotations, progress=progress)
            comparison = replace(comparison, average_precision=scores)
        return keep_file(exported, output, comparison)


def check_ap(
    network: Network,
    exported: OnnxModel,
    processor: Mask2FormerDinov3ImageProcessor,
    annotations: Split,
    *,
    progress: bool,
) -> ApComparison:
    """AP of model and file on a split. Raises CheckpointError if they differ by more than the precision explains."""
    scores = compare_ap(network, exported, processor, annotations, exported.metadata.precision, progress=progress)
    if differences := scores.differences():
        raise CheckpointError(f"exported file: {'; '.join(differences)}\n{scores.text()}")
    return scores


def load_for_export(
    model: str | Path, size: tuple[int, int] | None, dynamic: bool
) -> tuple[Mask2FormerDinov3ForInstanceSegmentation, Mask2FormerDinov3ImageProcessor]:
    """The network, and its processor with the canvas of the file. Raises OptionError for a Swin that is dynamic."""
    network, processor = load_network(model, "cpu")
    if dynamic and network.config.backbone_config.model_type == "swin":
        advice = "a file with a Swin takes one size: leave dynamic out, and export one file per size"
        raise OptionError("dynamic", "a DINOv3 backbone", "a Swin", advice)
    return network, processor if size is None else change_canvas(processor, *size)


def lower_precision(source: Path, metadata: OnnxMetadata, calibration: list[Feed]) -> Path:
    """Convert an fp32 file to the precision of `metadata`, in a folder beside it; returns the path of the new one."""
    lower = source.parent / metadata.precision / source.name
    lower.parent.mkdir()
    if metadata.precision == "fp16":
        to_half(source, lower)
    else:
        with silence_exporter():  # the quantiser recommends steps that torch's exporter has already done
            to_int8(source, lower, calibration)
    set_metadata(lower, metadata)
    return lower


def keep_file(exported: OnnxModel, output: Path, comparison: FileComparison) -> Export:
    """Give a file that has passed its check its final name, and write its record beside it."""
    about = describe_file(exported.path, exported)
    total = move_file(exported.path, output)
    write_parity(output, about, comparison)
    return Export(output, total, comparison)


def check_request(
    output: Path, size: tuple[int, int] | None, dynamic: bool, precision: str, calibration_images: Path | None
) -> None:
    """Raise ConfigError for wrong options, MissingExtraError for missing packages, before anything takes time."""
    if output.suffix not in (".onnx", TORCH_PROGRAM):
        raise OptionError("output", f"a file name that ends in .onnx or {TORCH_PROGRAM}", output)
    if output.suffix == ".onnx":
        require("export", "export", "onnx", "onnxruntime", "onnxscript")
    elif precision in PRECISIONS[1:]:
        raise OptionError("precision", f"fp32 for a {TORCH_PROGRAM} file", precision, "export an .onnx file for it")
    if output.is_dir():
        raise OptionError("output", "the name of a file", f"the folder {output}")
    if precision not in PRECISIONS:
        raise OptionError("precision", f"one of {', '.join(PRECISIONS)}", precision)
    if size is not None and dynamic:
        raise OptionError("size", "no size together with dynamic", " ".join(map(str, size)), "a dynamic file takes all")
    if size is not None:
        check_canvas(*size, options=("size", "size"))
    if precision == "int8" and calibration_images is None:
        advice = "int8 measures the ranges of activations on some dozens of images like those the model is used on"
        raise OptionError("calibration_images", "a folder of images for the precision int8", "none", advice)
    if precision != "int8" and calibration_images is not None:
        raise OptionError("calibration_images", f"none for the precision {precision}", calibration_images)


def trace(
    network: Mask2FormerDinov3ForInstanceSegmentation,
    processor: Mask2FormerDinov3ImageProcessor,
    path: Path,
    metadata: OnnxMetadata,
    *,
    dynamic: bool,
    with_postprocess: bool,
) -> None:
    """Write the graph in float32: a torch program, or by the ending of `path` ONNX with standard operators only.

    Raises OptionError if torch's exporter cannot write the network as ONNX; an error in the network itself is ours.
    """
    config = network.config
    count = min(MAX_GRAPH_DETECTIONS, config.num_queries * config.num_labels) if with_postprocess else 0
    # Two images, and two different sizes: the tracer takes sizes of 1, and equal sizes, for constants.
    height, width = (128, 192) if dynamic else padded_size(processor.size["height"], processor.size["width"])
    example = (torch.zeros(2, config.num_channels, height, width), torch.ones(2, height, width, dtype=torch.bool))
    batch = Dim("batch")
    shapes: dict[str, dict[int, object]] = {name: {0: batch} for name in INPUTS}
    if dynamic:
        sides = [Dim(name, min=min_units(config)) * PADDING for name in ("h", "w")]
        shapes["pixel_values"] |= {2: sides[0], 3: sides[1]}
        shapes["pixel_mask"] |= {1: sides[0], 2: sides[1]}
    outputs = (*LOGITS, *(DETECTIONS if count else ()))
    with torch.no_grad(), silence_exporter(), replace_positions():
        graph = ExportGraph(network, count).eval()
        program = torch.export.export(graph, example, dynamic_shapes=shapes, strict=False)
        if path.suffix == TORCH_PROGRAM:
            save_program(program, path, metadata.to_properties(), outputs)
        else:
            write_onnx(program, shapes, path, metadata, outputs)


def write_onnx(
    program: ExportedProgram,
    shapes: dict[str, dict[int, object]],
    path: Path,
    metadata: OnnxMetadata,
    outputs: tuple[str, ...],
) -> None:
    """Write a traced program as ONNX; shapes: its open dimensions. Raises as `trace`."""
    with search_at_slices_only():
        try:
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=INPUTS,
                output_names=outputs,
                opset_version=OPSET,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            got = f"an error of its exporter ({str(error).splitlines()[0]})"
            raise OptionError("model", "a network that torch can write as ONNX", got) from error
    assert exported is not None
    exported.model.metadata_props.update(metadata.to_properties())
    exported.model.producer_name, exported.model.producer_version = "mask2former-dinov3", __version__
    exported.save(path)
    check_operators(path)


def min_units(config: Mask2FormerDinov3Config) -> int:
    """The smallest side of a dynamic input, in multiples of 32 pixels: query seeds need one place per query."""
    if config.query_init != "seeds":
        return 2
    units = 2
    while (units * PADDING // config.finest_stride) ** 2 < config.num_queries:
        units += 1
    return units


def check_operators(path: Path) -> None:
    """Raise OptionError for an operator that is not part of the ONNX standard."""
    import onnx

    graph = onnx.load(path, load_external_data=False)
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in graph.graph.node if node.domain})
    if foreign or graph.functions:
        got = f"others ({', '.join(foreign) or 'functions'})"
        raise OptionError("model", "a network of standard ONNX operators", got)


def make_parent(output: Path) -> Path:
    """Make the folder of a file if it does not exist; returns it."""
    try:
        make_folder(output.absolute().parent)
    except OSError as error:
        raise OptionError("output", "a file in a folder that can be made", f"{output} ({error.strerror})") from error
    return output.absolute().parent


def move_file(written: Path, output: Path) -> int:
    """Move a file, with the weights that may be beside it, over older ones; returns their size in bytes."""
    data = data_file(written)
    old = output.with_name(data.name)
    total = written.stat().st_size
    if data.exists():
        total += data.stat().st_size
        publish(data, old)
    else:
        old.unlink(missing_ok=True)
    publish(written, output)
    return total


@contextmanager
def silence_exporter() -> Iterator[None]:
    """Suppress logs and warnings of torch's exporter, which a user cannot act on."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
