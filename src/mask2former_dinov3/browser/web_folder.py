"""The folder of `export --web`: a page that predicts in the browser, with the viewer of `serve`."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from string import Template

import numpy as np
import torch

from ..atomic_files import write_folder
from ..canvas import padded_size
from ..errors import OptionError
from ..export.onnx_export import Export
from ..export.parity import parity_file
from ..folder_lock import hold_folder
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..inference.onnx_model import LOGITS, OnnxConfig, OnnxMetadata, OnnxModel, data_file
from ..inference.score_calibration import UNCHANGED
from ..inference.settings import DEFAULTS
from ..inference.tiles.grid import Passes
from ..model_folder.bundled_code import CODE_LICENSE_FILE, CODE_LICENSE_TEXT
from ..model_folder.licence import LICENSE_FILE
from ..read_options import AS_STORED
from .viewer_page import (
    HISTOGRAM,
    INSTANCE_LIST,
    MIN_THRESHOLD,
    SAMPLE_IMAGE,
    STATIC,
    class_list,
    describe_classes,
    display_name,
    start_threshold,
    viewer_settings,
)
from .web_runtime import find_runtime, unpack_runtime

WEB_FILES = ("page.js", "page.css", "viewer.js", "viewer.css", "worker.js", "pixels.js", "instances.js", "tiles.js")
MODEL_FILE = "model.onnx"
MAX_PIXELS = 50_000_000  # of an image: as `serve`; the browser holds its pixels at four bytes each
MAX_TILES = 1_000  # of an image: as `serve`
CHECKED_NUMBERS = 256  # at most, of each output of the network


def export_web(
    model: str | Path, folder: Path, make_file: Callable[..., Export], say: Callable[[str], None] = lambda text: None
) -> Export:
    """Export a model into a new or empty folder that any web server can serve; returns the export of its .onnx file.

    make_file: `export` with its options, called with the file to write and `accept`. say: called with each step.
    Raises OptionError for a folder that holds files, a model that reads images as browsers cannot, and without
    onnxruntime-web (`find_runtime`); otherwise as `make_file`.
    """
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise OptionError("web", "a new or empty folder", f"{folder}, which holds files")
    archive = find_runtime(say)
    with (
        hold_folder(folder.absolute().parent, "web", "export", f".{folder.name}.in-use.json"),
        write_folder(folder) as written,
    ):
        done = make_file(written / MODEL_FILE, accept=check_reading)
        parity_file(written / MODEL_FILE).unlink()  # it names paths of this machine; the folder is made to be public
        fill_web_folder(written, display_name(model))
        unpack_runtime(archive, written / "runtime")
    return replace(done, path=folder / MODEL_FILE)


def check_reading(processor: Mask2FormerDinov3ImageProcessor) -> None:
    """Raise OptionError for a model that reads images as the page cannot: it takes the first page, as RGB."""
    options, faults = processor.read_options, []
    if processor.num_channels != 3 or options.channels is not None or processor.extra_channels:
        faults.append("of chosen channels")
    if options.page != AS_STORED.page:
        faults.append(f"of page {options.page}")
    if faults:
        advice = "predict and serve read them, also with an .onnx file; a page in the browser does not"
        raise OptionError("web", "a model of RGB images", f"one {' and '.join(faults)}", advice)


def fill_web_folder(folder: Path, name: str) -> None:
    """Write all files but the runtime beside the MODEL_FILE of a folder. name: of the model, as the page shows it.

    Raises OptionError for weights in a second file, which are too large for browsers, and OSError.
    """
    if data_file(folder / MODEL_FILE).exists():
        raise OptionError(
            "web", "a model whose weights fit into one file of 2 GB", "a larger one", "try --precision fp16"
        )
    network = OnnxModel(folder / MODEL_FILE, "cpu")
    metadata, config = network.metadata, network.config
    megabytes = (folder / MODEL_FILE).stat().st_size / 1e6
    (folder / "index.html").write_text(_index(name, metadata, config, megabytes), encoding="utf-8")
    described = describe_page_model(metadata, config) | {"check": expected_numbers(network)}
    (folder / "model.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    for file in WEB_FILES:
        shutil.copyfile(STATIC / file, folder / file)
    shutil.copyfile(SAMPLE_IMAGE, folder / "sample.png")
    shutil.copyfile(CODE_LICENSE_TEXT, folder / CODE_LICENSE_FILE)
    if text := metadata.licence.get("weights_text"):
        (folder / LICENSE_FILE).write_text(text, encoding="utf-8")


def describe_page_model(metadata: OnnxMetadata, config: OnnxConfig) -> dict[str, object]:
    """The content of model.json: what worker.js needs beside the network, and the settings of the viewer."""
    processor = metadata.processor()
    passes = Passes.of(processor.size, processor.read_options)
    accepted = f"JPEG, PNG, WebP, BMP or GIF, up to {MAX_PIXELS // 1_000_000} million pixels"
    if passes.whole is not None:
        accepted += f" or {MAX_TILES:,} tiles of {passes.whole[1]} x {passes.whole[0]}"
    return {
        "classes": metadata.classes,
        "category_ids": metadata.category_ids,
        "mean": metadata.mean,
        "std": metadata.std,
        "canvas": metadata.canvas,
        "padded": padded_size(*metadata.canvas),
        "copy_overlap": DEFAULTS.for_model(config).copy_overlap,
        "score_calibration": config.score_calibration or UNCHANGED,
        "value_range": metadata.value_range,
        "factor": passes.factor,
        "overlap": passes.overlap,
        "max_pixels": MAX_PIXELS,
        "max_tiles": MAX_TILES,
        "settings": viewer_settings(config, f"{accepted}; they stay on this machine", passes.whole),
    }


def expected_numbers(network: OnnxModel) -> dict[str, list[float]]:
    """Outputs of the network here, on the CPU, for an image of numbers that worker.js makes too (`checkImage`).

    With them the page notices a GPU on which the network computes something else. Of each output CHECKED_NUMBERS
    at equal distances, or all.
    """
    height, width = padded_size(*network.metadata.canvas)
    pixels = (np.arange(3 * height * width, dtype=np.int64) * 7919 % 257) / 128 - 1
    outputs = network.forward(torch.from_numpy(pixels.astype(np.float32).reshape(1, 3, height, width)))
    found = {}
    for name in LOGITS:
        flat = outputs[name].flatten()
        step = max(1, len(flat) // CHECKED_NUMBERS)
        found[name] = [round(number, 4) for number in flat[::step][:CHECKED_NUMBERS].tolist()]
    return found


def _index(name: str, metadata: OnnxMetadata, config: OnnxConfig, megabytes: float) -> str:
    by_class = config.num_labels > 1
    licence = html.escape(f"Licence of the weights: {metadata.licence['weights']}.")
    if "weights_text" in metadata.licence:
        licence += f' <a href="{LICENSE_FILE}">Its text</a>'
    return Template((STATIC / "index.html").read_text(encoding="utf-8")).substitute(
        name=html.escape(name),
        finds=describe_classes(config),
        viewer=(STATIC / "viewer.html").read_text(encoding="utf-8"),
        least=MIN_THRESHOLD,
        threshold=start_threshold(config),
        histogram=HISTOGRAM,
        classes=class_list(config),
        instances=INSTANCE_LIST,
        by_class=" checked" if by_class else "",
        by_instance="" if by_class else " checked",
        megabytes=f"{megabytes:.0f}",
        licence=licence,
    )
