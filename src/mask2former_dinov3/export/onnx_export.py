"""A model folder as one ONNX file: traced by torch, checked in onnxruntime on real images, and only then kept."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from ..canvas import PADDING, check_canvas, padded_size
from ..errors import CheckpointError, DatasetError, UserError
from ..inference.files.find_images import find_images
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor, Prepared
from ..inference.onnx_model import DETECTIONS, FORMAT_VERSION, INPUTS, LOGITS, OnnxMetadata, OnnxModel, data_file
from ..inference.predictor import load_network
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..model_folder.licence import LICENCE, LICENCE_TEXT, is_bound
from ..sample_data import SAMPLE
from ..version import __version__
from .onnx_check import Agreement, check_agreement
from .onnx_graph import ExportGraph, traceable_positions
from .precision import to_half, to_int8

SAMPLE_IMAGES = SAMPLE / "valid"  # every installation has them
PRECISIONS = ("fp32", "fp16", "int8")
OPSET = 20  # torch's own default: the newest for which its exporter, onnxruntime, its quantiser and OpenVINO all stand
DETECTIONS_AT_MOST = 100  # of one image in a graph that makes instances, as COCO counts
CHECKED_IMAGES = 4
CALIBRATION_IMAGES = 64
NEEDED = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class Export:
    """A file that was kept: its size in bytes (with its data file, if it has one), and how it was checked."""

    path: Path
    size: int
    agreement: Agreement

    def text(self) -> str:
        return f"{self.agreement.text()}\n{self.path} ({self.size / 1e6:.1f} MB)"


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
    say: Callable[[str], None] = lambda text: None,
) -> Export:
    """Export a model folder (or hub id) into the file `output`, which is there afterwards whole and checked, or not.

    size: the canvas (height, width), by default the model's own; a fixed file takes batches of it. dynamic: any height
    and width that are multiples of 32. with_postprocess: the graph also gives scores, labels and masks at canvas size.
    images: a folder by which the file is checked, by default images of the bundled sample. calibration_images: needed
    for int8. say: told what is being done. Raises UserError for what cannot be done, CheckpointError for a model that
    cannot be loaded, a check that fails, or a file that cannot be written.
    """
    check_request(output, size, dynamic, precision, calibration_images)
    network, processor = load_network(model, "cpu")
    if dynamic and network.config.backbone_config.model_type == "swin":
        raise UserError(
            "dynamic: the windows of a Swin backbone do not follow open sizes; export one file per size (--size H W)"
        )
    if size is not None:
        processor = at_canvas(processor, *size)
    prepared = read_images(images or SAMPLE_IMAGES, processor, CHECKED_IMAGES)
    calibration = []
    if calibration_images is not None:
        calibration = read_images(calibration_images, processor, CALIBRATION_IMAGES)
    metadata = describe(network, processor, Path(model))
    with tempfile.TemporaryDirectory(dir=existing_parent(output), prefix=f".{output.name}.") as folder:
        written = Path(folder) / output.name
        say("tracing the network (a minute or more)")
        trace(network, processor, written, metadata, dynamic=dynamic, with_postprocess=with_postprocess)
        batches = batches_of(prepared, processor, dynamic, images or SAMPLE_IMAGES)
        say(f"comparing with torch on {len(prepared)} images")
        agreement = check_agreement(network, OnnxModel(written, "cpu"), batches)
        if precision != "fp32":
            say(f"converting to {precision}")
            lower = Path(folder) / precision / output.name
            lower.parent.mkdir()
            if precision == "fp16":
                to_half(written, lower)
            else:
                with quietly():  # the quantiser advises preparations that torch's exporter has made already
                    to_int8(written, lower, (feed_of(processor, one) for one in calibration))
            set_metadata(lower, replace(metadata, precision=precision))
            agreement = check_agreement(network, OnnxModel(lower, "cpu"), batches)
            written = lower
        return Export(output, move(written, output), agreement)


def check_request(
    output: Path, size: tuple[int, int] | None, dynamic: bool, precision: str, calibration_images: Path | None
) -> None:
    """Raise UserError for what cannot be done, before anything takes time."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export: needs {' and '.join(missing)}; pip install 'mask2former-dinov3[export]'")
    if output.suffix != ".onnx":
        raise UserError(f"{output}: expected a file name that ends in .onnx")
    if output.is_dir():
        raise UserError(f"{output}: is a folder; give the name of a file")
    if precision not in PRECISIONS:
        raise UserError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if size is not None and dynamic:
        raise UserError("size and dynamic exclude each other: a dynamic file takes every size")
    if size is not None:
        check_canvas(*size, options=("size", "size"))
    if (precision == "int8") != (calibration_images is not None):
        raise UserError(
            "calibration_images: int8 needs a folder of images like those the model is used on (some dozens), from "
            "which the ranges of its numbers are read; no other precision does"
        )


def trace(
    network: Mask2FormerDinov3ForInstanceSegmentation,
    processor: Mask2FormerDinov3ImageProcessor,
    path: Path,
    metadata: OnnxMetadata,
    *,
    dynamic: bool,
    with_postprocess: bool,
) -> None:
    """Write the graph in float32, with standard operators only. Raises CheckpointError when torch cannot trace it."""
    config = network.config
    count = min(DETECTIONS_AT_MOST, config.num_queries * config.num_labels) if with_postprocess else 0
    # Two images, and two sizes that differ: what is 1 or equal in the example would be taken for a rule.
    height, width = (128, 192) if dynamic else padded_size(processor.size["height"], processor.size["width"])
    example = (torch.zeros(2, 3, height, width), torch.ones(2, height, width, dtype=torch.bool))
    batch = Dim("batch")
    shapes: dict[str, dict[int, Any]] = {name: {0: batch} for name in INPUTS}
    if dynamic:
        sides = [Dim(name, min=least_units(config)) * PADDING for name in ("h", "w")]
        shapes["pixel_values"] |= {2: sides[0], 3: sides[1]}
        shapes["pixel_mask"] |= {1: sides[0], 2: sides[1]}
    try:
        with torch.no_grad(), quietly(), traceable_positions():
            graph = ExportGraph(network, count).eval()
            program = torch.export.export(graph, example, dynamic_shapes=shapes, strict=False)
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=INPUTS,
                output_names=(*LOGITS, *(DETECTIONS if count else ())),
                opset_version=OPSET,
                verbose=False,
            )
    except (RuntimeError, ValueError, torch.onnx.OnnxExporterError) as error:
        raise CheckpointError(f"torch could not trace the network: {str(error).splitlines()[0]}") from error
    assert exported is not None
    exported.model.metadata_props.update(metadata.to_properties())
    exported.model.producer_name, exported.model.producer_version = "mask2former-dinov3", __version__
    exported.save(path)
    check_operators(path)


def least_units(config: Any) -> int:
    """The least side of a dynamic input, in multiples of 32 pixels: as many places as queries born there, at least."""
    if config.query_init != "seeds":
        return 2
    units = 2
    while (units * PADDING // config.finest_stride) ** 2 < config.num_queries:
        units += 1
    return units


def check_operators(path: Path) -> None:
    """Raise CheckpointError for an operator that is not one of ONNX's own."""
    import onnx

    graph = onnx.load(path, load_external_data=False)
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in graph.graph.node if node.domain})
    if foreign or graph.functions:
        raise CheckpointError(f"the graph has operators that are not of ONNX itself: {', '.join(foreign)}")


def describe(
    network: Mask2FormerDinov3ForInstanceSegmentation, processor: Mask2FormerDinov3ImageProcessor, folder: Path
) -> OnnxMetadata:
    """What an fp32 file of this model says of itself."""
    config = network.config
    licence = {"code": "MIT", "weights": "not stated; ask whoever trained the model"}
    if is_bound(config, folder):
        text = LICENCE_TEXT.read_text(encoding="utf-8")
        licence |= {"weights": f"DINOv3 License, {LICENCE}", "weights_text": text}
    return OnnxMetadata(
        format_version=FORMAT_VERSION,
        producer={"mask2former-dinov3": __version__, "torch": torch.__version__},
        classes=[str(config.id2label[label]) for label in range(config.num_labels)],
        category_ids=[int(id_) for id_ in config.category_ids or ()],
        mean=processor.image_mean,
        std=processor.image_std,
        canvas=[processor.size["height"], processor.size["width"]],
        precision="fp32",
        mask_stride=int(config.mask_stride),
        num_queries=config.num_queries,
        licence=licence,
    )


def set_metadata(path: Path, metadata: OnnxMetadata) -> None:
    """Into a file that has been written, whose weights may lie beside it."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, metadata.to_properties())
    onnx.save(model, path)


def read_images(folder: Path, processor: Mask2FormerDinov3ImageProcessor, count: int) -> list[Prepared]:
    """The first `count` images below a folder, on the canvas. Raises DatasetError when there is none."""
    failed: list[tuple[str, str]] = []
    files = find_images([folder], Path(folder) / ".nowhere", failed)
    if not files:
        raise DatasetError(f"export: no image found\n  {failed[0][1]}")
    return [processor.prepare(path) for path, _ in islice(files, count)]


def at_canvas(processor: Mask2FormerDinov3ImageProcessor, height: int, width: int) -> Mask2FormerDinov3ImageProcessor:
    """The same for another canvas."""
    size = {"height": height, "width": width}
    return Mask2FormerDinov3ImageProcessor(size, processor.image_mean, processor.image_std)


def feed_of(processor: Mask2FormerDinov3ImageProcessor, prepared: Prepared) -> dict[str, Any]:
    """One image as onnxruntime takes it."""
    inputs = processor.collate([prepared])
    return {name: inputs[name].numpy() for name in INPUTS}


Batches = list[tuple[Mask2FormerDinov3ImageProcessor, Sequence[Prepared]]]


def batches_of(
    prepared: list[Prepared], processor: Mask2FormerDinov3ImageProcessor, dynamic: bool, folder: Path
) -> Batches:
    """One image, then the others at once (twice the first where there is one only); if dynamic, one on another canvas,
    lower and wider."""
    batches: Batches = [(processor, prepared[:1]), (processor, prepared[1:] if len(prepared) > 2 else prepared[:1] * 2)]
    if dynamic:
        height, width = padded_size(processor.size["height"] * 3 // 4, processor.size["width"] + PADDING)
        other = at_canvas(processor, max(height, 64), width)
        batches.append((other, read_images(folder, other, 1)))
    return batches


def existing_parent(output: Path) -> Path:
    """The folder of a file, made if there is none."""
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{output}: its folder cannot be made ({error}); choose another") from error
    return output.absolute().parent


def move(written: Path, output: Path) -> int:
    """Put a file and its weights, if they lie beside it, in the place of older ones; returns their bytes."""
    data = data_file(written)
    old = output.with_name(data.name)
    total = written.stat().st_size
    if data.exists():
        total += data.stat().st_size
        shutil.move(data, old)
    else:
        old.unlink(missing_ok=True)
    shutil.move(written, output)
    return total


@contextmanager
def quietly() -> Iterator[None]:
    """Without what torch's exporter logs and warns of while it works: nothing that a user could act on."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
