"""Export a model folder as one ONNX file: torch traces it, onnxruntime runs it on real images for comparison."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch.export import Dim

from ..atomic_files import make_folder, publish
from ..canvas import PADDING, check_canvas, padded_size
from ..errors import DatasetError, OptionError
from ..extras import require
from ..folder_lock import hold_folder
from ..inference.files.find_images import find_images
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor, Prepared
from ..inference.load_images import load_image
from ..inference.onnx_model import DETECTIONS, FORMAT_VERSION, INPUTS, LOGITS, OnnxMetadata, OnnxModel, data_file
from ..inference.predictor import check_extra_images, load_network
from ..inference.tiles.grid import Passes
from ..model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from ..model_folder.licence import LICENCE, LICENCE_TEXT, is_bound
from ..read_options import ReadChanges
from ..sample_data import SAMPLE
from ..version import __version__
from .onnx_check import Agreement, check_agreement
from .onnx_graph import ExportGraph, replace_positions
from .precision import Feed, to_half, to_int8

SAMPLE_IMAGES = SAMPLE / "valid"  # part of every installation
PRECISIONS = ("fp32", "fp16", "int8")
OPSET = 20  # torch's default: the newest that its exporter, onnxruntime, its quantiser and OpenVINO all support
MAX_GRAPH_DETECTIONS = 100  # per image, in a graph with post-processing; COCO's limit
CHECKED_IMAGES = 4
CALIBRATION_IMAGES = 64
MIN_HEIGHT = 64  # pixels, of the second canvas on which a dynamic file is checked

CheckBatches = list[tuple[Mask2FormerDinov3ImageProcessor, Sequence[Prepared]]]
"""Prepared images with the processor that made them, for `check_agreement`."""


@dataclass(frozen=True)
class Export:
    """An exported file: its size in bytes (with its data file, if it has one), and the result of its check."""

    path: Path
    size: int
    agreement: Agreement

    def text(self) -> str:
        """The result for people."""
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
    extra_images: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    accept: Callable[[Mask2FormerDinov3ImageProcessor], None] = lambda processor: None,
) -> Export:
    """Export a model folder (or hub id) to the file `output`, which is written only if it passes the check.

    size: the canvas (height, width), by default the model's own; the file then takes batches of this size. dynamic: the
    file takes any height and width that are multiples of 32. with_postprocess: the graph also outputs scores, labels
    and masks at canvas size. images: the folder of images for the check, by default those of the bundled sample.
    calibration_images: the folder of images for int8, which requires it. extra_images: where the second files of these
    images are, for a model that takes channels from them. say: called with each step. accept: may refuse the processor.
    Raises ConfigError for options that are wrong or exclude each other, MissingExtraError without the packages,
    CheckpointError for a model that cannot be loaded, a check that fails, or a file that cannot be written.
    """
    check_request(output, size, dynamic, precision, calibration_images)
    network, processor = load_network(model, "cpu")
    prepare_reading(processor, images, extra_images, accept)
    if dynamic and network.config.backbone_config.model_type == "swin":
        advice = "a file with a Swin takes one size: leave dynamic out, and export one file per size"
        raise OptionError("dynamic", "a DINOv3 backbone", "a Swin", advice)
    if size is not None:
        processor = change_canvas(processor, *size)
    prepared = read_images(images or SAMPLE_IMAGES, processor, CHECKED_IMAGES)
    calibration = [] if calibration_images is None else read_images(calibration_images, processor, CALIBRATION_IMAGES)
    metadata = build_metadata(network, processor, Path(model))
    parent = make_parent(output)
    with (
        hold_folder(parent, "output", "export", f".{output.name}.in-use.json"),
        tempfile.TemporaryDirectory(dir=parent, prefix=f".{output.name}.") as folder,
    ):
        written = Path(folder) / output.name
        say("tracing the network (a minute or more)")
        trace(network, processor, written, metadata, dynamic=dynamic, with_postprocess=with_postprocess)
        batches = make_batches(prepared, processor, dynamic, images or SAMPLE_IMAGES)
        say(f"comparing with torch on {len(prepared)} images")
        agreement = check_agreement(network, OnnxModel(written, "cpu"), batches)
        if precision != "fp32":
            say(f"converting to {precision}")
            lower = Path(folder) / precision / output.name
            lower.parent.mkdir()
            if precision == "fp16":
                to_half(written, lower)
            else:
                with silence_exporter():  # the quantiser recommends steps that torch's exporter has already done
                    to_int8(written, lower, (feed_of(processor, one) for one in calibration))
            set_metadata(lower, replace(metadata, precision=precision))
            agreement = check_agreement(network, OnnxModel(lower, "cpu"), batches)
            written = lower
        return Export(output, move_file(written, output), agreement)


def check_request(
    output: Path, size: tuple[int, int] | None, dynamic: bool, precision: str, calibration_images: Path | None
) -> None:
    """Raise ConfigError for wrong options, MissingExtraError for missing packages, before anything takes time."""
    require("export", "export", "onnx", "onnxruntime", "onnxscript")
    if output.suffix != ".onnx":
        raise OptionError("output", "a file name that ends in .onnx", output)
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


def prepare_reading(
    processor: Mask2FormerDinov3ImageProcessor,
    images: Path | None,
    extra_images: str | None,
    accept: Callable[[Mask2FormerDinov3ImageProcessor], None],
) -> None:
    """Set where second files are. Raises OptionError unless there are images for the check of the model's channels.

    accept: called first, to refuse the processor.
    """
    accept(processor)
    if images is None and processor.num_channels != 3:
        expected = f"a folder of images of {processor.num_channels} channels, to compare the file on"
        raise OptionError("images", expected, "none", "the bundled images have three")
    processor.read_options = ReadChanges(extra_images=extra_images).apply(processor.read_options)
    check_extra_images(processor)


def trace(
    network: Mask2FormerDinov3ForInstanceSegmentation,
    processor: Mask2FormerDinov3ImageProcessor,
    path: Path,
    metadata: OnnxMetadata,
    *,
    dynamic: bool,
    with_postprocess: bool,
) -> None:
    """Write the graph in float32, with standard operators only.

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
    with torch.no_grad(), silence_exporter(), replace_positions():
        graph = ExportGraph(network, count).eval()
        program = torch.export.export(graph, example, dynamic_shapes=shapes, strict=False)
        try:
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


def build_metadata(
    network: Mask2FormerDinov3ForInstanceSegmentation, processor: Mask2FormerDinov3ImageProcessor, folder: Path
) -> OnnxMetadata:
    """The metadata of an fp32 file of this model. folder: the model folder, which may hold Meta's licence."""
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
        value_range=processor.value_range,
        page=processor.page,
        channels=processor.channels,
        extra_channels=processor.extra_channels,
        image_scale=processor.image_scale,
        class_map=config.class_map,
        score_threshold=config.score_threshold,
        score_threshold_source=config.score_threshold_source,
        copy_overlap=config.copy_overlap,
    )


def set_metadata(path: Path, metadata: OnnxMetadata) -> None:
    """Write metadata into an existing file, whose weights may be in a file beside it."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, metadata.to_properties())
    onnx.save(model, path)


def read_images(folder: Path, processor: Mask2FormerDinov3ImageProcessor, count: int) -> list[Prepared]:
    """The first `count` images below a folder, prepared for the canvas. Raises DatasetError if there is none.

    Of an image that keeps its own scale and is larger than the canvas, the first tile.
    """
    failed: list[tuple[str, str]] = []
    files = find_images([folder], None, failed)
    if not files:
        raise DatasetError(failed[0][1])
    passes = Passes.of(processor.size, processor.read_options, most=1.0)
    prepared = []
    for file in islice(files, count):
        pixels = load_image(file.path, processor.read_options, processor.num_channels)
        first = next(passes.grid(pixels.shape[0], pixels.shape[1]).row(0))
        prepared.append(processor.prepare(pixels[first.y0 : first.y1, first.x0 : first.x1]))
    return prepared


def change_canvas(
    processor: Mask2FormerDinov3ImageProcessor, height: int, width: int
) -> Mask2FormerDinov3ImageProcessor:
    """A copy of an image processor for another canvas."""
    size = {"height": height, "width": width}
    changed = copy.deepcopy(processor)
    changed.size = size
    return changed


def feed_of(processor: Mask2FormerDinov3ImageProcessor, prepared: Prepared) -> Feed:
    """The inputs of one image, as onnxruntime takes them."""
    inputs = processor.collate([prepared])
    return {name: inputs[name].numpy() for name in INPUTS}


def make_batches(
    prepared: list[Prepared], processor: Mask2FormerDinov3ImageProcessor, dynamic: bool, folder: Path
) -> CheckBatches:
    """The batches for the check: the first image, then all others together (the first twice if there are not two).

    dynamic: a third batch has one image of the folder on another canvas, lower and wider.
    """
    others = prepared[1:] if len(prepared) > 2 else prepared[:1] * 2
    batches: CheckBatches = [(processor, prepared[:1]), (processor, others)]
    if dynamic:
        height, width = padded_size(processor.size["height"] * 3 // 4, processor.size["width"] + PADDING)
        other = change_canvas(processor, max(height, MIN_HEIGHT), width)
        batches.append((other, read_images(folder, other, 1)))
    return batches


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
