"""The flags of every verb of the command line, with their help; `cli` runs the verbs.

Imports are inside the functions: `--help` loads neither torch nor NumPy.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable
from pathlib import Path

SAVEABLE = ("overlays", "masks", "coco", "geojson", "yolo")
SPLIT_OPTIONS = tuple(f"{split}_{part}" for split in ("train", "valid", "test") for part in ("annotations", "images"))


class VerbParser(argparse.ArgumentParser):
    """A parser whose help can end with text that is made only when it is asked for."""

    appendix: Callable[[], str] | None = None

    def format_help(self) -> str:
        return super().format_help() + (self.appendix() if self.appendix else "")


def configuration_help() -> str:
    """The fields of the configuration, which are the flags of `train`."""
    from ..config.train_config import TrainConfig

    lines = ["", "options of the configuration, as flags (--key value) or keys of the JSON file:"]
    for name, field in TrainConfig.model_fields.items():
        default = "" if field.is_required() else f"  [{json.dumps(field.default)}]"
        text = (field.description or "").replace("`", "")
        lines.append(f"  --{name}{default}")
        lines.append(textwrap.fill(text, 100, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines) + "\n"


def add_model_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """What every verb that runs a model takes."""
    parser.add_argument(
        "--model",
        metavar="M",
        required=required,
        help="folder saved by training (such as best/), a hub id, or an .onnx file of export",
    )
    parser.add_argument("--device", help="such as cpu, cuda, cuda:1; default: a GPU if there is one")
    parser.add_argument("--batch-size", type=positive, metavar="N", default=1, help="images at once (default: 1)")
    parser.add_argument(
        "--max-detections", type=positive, metavar="N", default=100, help="instances per image (default: 100, as COCO)"
    )


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotations", type=Path, metavar="FILE", required=True, help="COCO JSON with the truth")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of its images")
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="for metrics.json, predictions.json")
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE", help="score this COCO results file, in place of a model"
    )
    add_model_options(parser, required=False)


def add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, folder, or pattern in quotes")
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="folder for the results")
    parser.add_argument("--threshold", type=float, metavar="T", default=0.5, help="least score (default: 0.5)")
    parser.add_argument(
        "--save", metavar="WHAT", default="overlays,coco", help=f"any of {','.join(SAVEABLE)} (default: %(default)s)"
    )
    add_tiles(parser)
    add_model_options(parser, required=True)


def add_tiles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tile",
        type=positive,
        metavar="N",
        help="predict images that are larger in tiles of N pixels a side and merge them; --batch-size and "
        "--max-detections then count in tiles",
    )
    parser.add_argument(
        "--overlap", type=float, metavar="F", default=0.2, help="part of a tile that neighbours share (default: 0.2)"
    )


def add_batch_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image, folder, pattern in quotes, list (.txt, .parquet); paths or URIs such as s3://bucket/folder",
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="folder or URI for the Parquet files")
    parser.add_argument("--threshold", type=float, metavar="T", default=0.5, help="least score (default: 0.5)")
    add_tiles(parser)
    parser.add_argument("--column", metavar="NAME", help="column of Parquet lists; default: image, uri, url or path")
    parser.add_argument("--shard-size", type=positive, metavar="N", default=1000, help="images a file (default: 1000)")
    parser.add_argument("--retry-failed", action="store_true", help="images that failed in earlier runs once more")
    parser.add_argument("--ray-address", metavar="A", help='of a Ray cluster, or "auto"; default: one for this run')
    parser.add_argument("--actors", type=positive, metavar="N", help="models; default: one a GPU, or one a node")
    parser.add_argument(
        "--cpus-per-actor", type=float, metavar="N", help="default: what a node has, but a rest to read"
    )
    parser.add_argument("--gpus-per-actor", type=float, metavar="F", help="0 to 1; default: 1 where there are GPUs")
    add_model_options(parser, required=True)


def add_check_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, nargs="?", metavar="PATH", help="folder of the data set, or one COCO JSON")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report as JSON")
    parser.add_argument(
        "--num-queries", type=positive, metavar="N", default=100, help="queries of the model to train (default: 100)"
    )
    for side in ("height", "width"):
        text = f"{side} of the training canvas, for what masks can reach on it (default: 1024)"
        parser.add_argument(f"--image-{side}", f"--image_{side}", type=positive, metavar="N", default=1024, help=text)
    for option in SPLIT_OPTIONS:
        parser.add_argument(f"--{option}", f"--{option.replace('_', '-')}", type=Path, help="for a layout of your own")
    parser.add_argument("--valid-split", "--valid_split", type=float, default=0.1, help="as in training (default: 0.1)")


def add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="what backbone or head take: a folder, a file, a hub id")
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="folder for the result, new or empty")
    parser.add_argument(
        "--to",
        choices=("transformers", "timm", "meta", "mask2former-dinov3"),
        help="format; default: transformers for a backbone, mask2former-dinov3 (a model of ours) for a Mask2Former",
    )
    parser.add_argument(
        "--with-code",
        action="store_true",
        help="the model folder carries its code, for trust_remote_code",
    )


def add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, metavar="FOLDER", required=True, help="saved by training, such as best/")
    parser.add_argument("--repo", metavar="USER/NAME", required=True, help="repository; it is made if there is none")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")


def add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="M", required=True, help="folder saved by training, a hub id, or .onnx file")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, metavar="N", default=8000, help="0: any free one (default: %(default)s)")
    parser.add_argument("--device", help="such as cpu, cuda, cuda:1; default: a GPU if there is one")
    for name, kind, default, text in (
        ("batch-size", positive, 8, "most images in one forward pass"),
        ("max-queue", positive, 64, "most requests taken at a time; others are told to come back"),
        ("max-bytes", positive, 20_000_000, "largest request"),
        ("max-pixels", positive, 50_000_000, "largest image"),
        ("timeout", float, 60.0, "seconds after which a request is given up"),
        ("max-wait", float, 10.0, "milliseconds that an image waits for others to fill its batch"),
    ):
        parser.add_argument(f"--{name}", type=kind, metavar="N", default=default, help=f"{text} (default: {default})")


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="M", required=True, help="folder saved by training (such as best/), or a hub id"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.onnx", required=True, help="file for the result")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--size",
        type=positive,
        nargs=2,
        metavar=("H", "W"),
        help="canvas that images are fitted into (default: that of training); the file takes this size only",
    )
    sizes.add_argument("--dynamic", action="store_true", help="the file takes every size in multiples of 32")
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="of the weights (default: %(default)s)"
    )
    parser.add_argument(
        "--with-postprocess", action="store_true", help="the file also gives scores, labels and masks at canvas size"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="images by which the file is checked (default: the bundled sample)"
    )
    parser.add_argument(
        "--calibration-images", type=Path, metavar="DIR", help="for int8: images like those the model is used on"
    )
