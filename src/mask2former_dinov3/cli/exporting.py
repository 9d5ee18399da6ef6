"""The verbs `export` and `check-export`: their options, and how they run."""

from __future__ import annotations

import argparse
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .data_options import add_extra_images, find_truth
from .messages import complain, say
from .parser import VerbParser, positive

if TYPE_CHECKING:
    from ..data.layout import Split


def add_export(parser: VerbParser) -> None:
    parser.add_argument(
        "--model", metavar="M", required=True, help="folder saved by training (such as best/), or hub id"
    )
    targets = parser.add_mutually_exclusive_group(required=True)
    targets.add_argument("--output", type=Path, metavar="FILE", help="file to write: .onnx, or .pt2 for torch.export")
    targets.add_argument(
        "--web",
        type=Path,
        metavar="DIR",
        help="write a folder with the ONNX file and a web page that predicts in the browser; fetches onnxruntime-web "
        "with npm, once",
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--size",
        type=positive,
        nargs=2,
        metavar=("H", "W"),
        help="height and width of the only input size of the file (default: the training canvas)",
    )
    sizes.add_argument("--dynamic", action="store_true", help="accept every height and width that is a multiple of 32")
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="number format of the weights (default: %(default)s)",
    )
    parser.add_argument(
        "--with-postprocess",
        action="store_true",
        help="add outputs with scores, labels and masks at the size of the canvas",
    )
    add_compared(parser)
    parser.add_argument(
        "--calibration-images",
        type=Path,
        metavar="DIR",
        help="for int8: folder with some dozens of images like those that will be predicted",
    )
    parser.memory_advice += ("lower --size",)


def add_check_export(parser: VerbParser) -> None:
    """Add the options of `check-export`."""
    parser.add_argument("file", type=Path, metavar="FILE", help=".onnx or .pt2 file written by export")
    parser.add_argument(
        "--model", metavar="M", required=True, help="the model that was exported: folder saved by training, or hub id"
    )
    parser.add_argument(
        "--runtime",
        metavar="R",
        help="what runs an .onnx file: onnxruntime:PROVIDER (such as onnxruntime:CUDAExecutionProvider) or "
        "openvino:DEVICE; without what follows the colon, on the CPU (default: onnxruntime; a .pt2 file: torch)",
    )
    parser.add_argument(
        "--runtime-precision",
        choices=("fp32", "default"),
        default="fp32",
        help="of an fp32 file: compute in fp32, or as the runtime does by default (bf16 in OpenVINO, TF32 with CUDA), "
        "with the limits of fp16 (default: %(default)s)",
    )
    add_compared(parser)


def add_compared(parser: VerbParser) -> None:
    """Add the images on which file and model are compared."""
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="images on which the file is compared with torch (default: the bundled sample)",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="ground truth of --images: the COCO AP of file and model must agree too (default: AP is not computed)",
    )
    add_extra_images(parser)
    parser.set_defaults(dataset=None, format="auto", classes=None, crowd="ignore", incomplete_images="keep")


def find_scored(arguments: argparse.Namespace) -> Split | None:
    """The split of `--annotations` and `--images`; None without annotations."""
    if arguments.annotations is None:
        return None
    if arguments.images is None:
        arguments.parser.error("--annotations: expected --images beside it")
    return find_truth(arguments)


def run_export(arguments: argparse.Namespace) -> int:
    """Run `export`."""
    annotations = find_scored(arguments)
    from ..export.onnx_export import export

    make_file = partial(
        export,
        arguments.model,
        size=tuple(arguments.size) if arguments.size else None,
        dynamic=arguments.dynamic,
        precision=arguments.precision,
        with_postprocess=arguments.with_postprocess,
        images=arguments.images,
        calibration_images=arguments.calibration_images,
        extra_images=arguments.extra_images,
        annotations=annotations,
        say=complain,
        progress=True,
    )
    if arguments.web is None:
        say(make_file(arguments.output).text())
        return 0
    from ..browser.web_folder import export_web

    say(export_web(arguments.model, arguments.web, make_file, complain).text())
    say(
        f"{arguments.web}: put it on any web server, or run: python -m http.server -d {shlex.quote(str(arguments.web))}"
    )
    return 0


def run_check_export(arguments: argparse.Namespace) -> int:
    """Run `check-export`; 1 if file and model differ."""
    annotations = find_scored(arguments)
    from ..export.check_export import check_export

    done = check_export(
        arguments.file,
        arguments.model,
        runtime=arguments.runtime,
        full_precision=arguments.runtime_precision == "fp32",
        images=arguments.images,
        extra_images=arguments.extra_images,
        annotations=annotations,
        say=complain,
        progress=True,
    )
    say(done.text())
    differences = done.comparison.differences()
    if differences:
        lines = "\n  ".join(differences)
        complain(f"error: {arguments.file} differs from {arguments.model} in {done.comparison.runtime}\n  {lines}")
    return 1 if differences else 0
