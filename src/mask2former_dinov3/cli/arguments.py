"""The options of every verb and their help; `verbs` runs the verbs."""

from __future__ import annotations

from pathlib import Path

from ..config.presets import DATASET_FORMATS, SPLIT_OPTIONS
from .data_options import add_read_options
from .parser import VerbParser, positive, real_number
from .threshold_options import add_aims, add_threshold, add_tta

SAVEABLE = ("overlays", "masks", "coco", "coco-results", "csv", "label-studio", "geojson", "yolo")
DEVICE = "cpu, cuda, or one GPU such as cuda:1 (default: a GPU if there is one)"


def add_train(parser: VerbParser) -> None:
    """Add `--config`; the other options are the fields of TrainConfig, which `load_config` reads."""
    parser.add_argument(
        "--config", metavar="FILE.json", help="JSON file with the options below (default: none); flags override it"
    )
    parser.appendix = describe_train_options
    parser.memory_advice = (
        "lower --per-device-train-batch-size and raise --gradient-accumulation-steps by the same factor",
        "lower --image-height and --image-width",
        "set --gradient-checkpointing true",
    )


def describe_train_options() -> str:
    """The options of TrainConfig, for the help of `train`."""
    from ..config.option_help import format_options

    return f"""
The options below are flags, or keys of the JSON file with underscores ("image_height": 1024).
A flag without a value is true; null in JSON is null or none as a flag.
{format_options()}"""


def add_model_options(parser: VerbParser, *, required: bool, limit: str = "the number of the model's queries") -> None:
    """Add what every verb takes that runs a model on images. limit: the default of --max-detections."""
    parser.add_argument(
        "--model",
        metavar="M",
        required=required,
        help="folder saved by training (such as best/), hub id, or .onnx or .pt2 file written by export",
    )
    add_device(parser)
    parser.add_argument(
        "--max-detections",
        type=positive,
        metavar="N",
        help=f"maximum number of instances per image (default: {limit})",
    )
    add_read_options(parser)


def add_device(parser: VerbParser) -> None:
    """Add where a model runs, and on how many images at a time."""
    parser.add_argument("--device", help=DEVICE)
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        default=1,
        help="number of images per forward pass (default: %(default)s)",
    )
    parser.memory_advice += ("lower --batch-size",)


def add_compile(parser: VerbParser) -> None:
    """Add whether the network is compiled; `train` has the same flag."""
    parser.add_argument(
        "--compile", action="store_true", help="compile the network first: takes a minute or more, then it is faster"
    )


def add_tiles(parser: VerbParser) -> None:
    parser.add_argument(
        "--tile",
        type=positive,
        metavar="N",
        help="split larger images into tiles of N x N pixels and merge the results; --batch-size and "
        "--max-detections then count per tile (default: no tiles, or tiles of the canvas' size for a model with "
        "image_scale native)",
    )
    parser.add_argument(
        "--overlap",
        type=real_number,
        metavar="F",
        default=0.2,
        help="fraction of a tile that it shares with its neighbour (default: %(default)s)",
    )
    parser.memory_advice += ("predict in tiles with --tile",)


def add_read_rules(parser: VerbParser, *, with_config: bool = False) -> None:
    """Add what the annotations mean where COCO's meaning may not be the right one; `train` has the same options.

    with_config: a `--config` gives the values that no flag gives.
    """
    parser.add_argument(
        "--crowd",
        choices=("ignore", "instances"),
        default=None if with_config else "ignore",
        help=f"meaning of iscrowd 1: a region that is ignored, or a single object ({_default('ignore', with_config)})",
    )
    parser.add_argument(
        "--incomplete-images",
        choices=("keep", "drop"),
        default=None if with_config else "keep",
        help=f"images with an object without a usable mask: keep or leave out ({_default('keep', with_config)})",
    )


def add_formats(parser: VerbParser, *, with_config: bool = False) -> None:
    """Add what every verb takes that reads a data set. with_config: as for `add_read_rules`."""
    parser.add_argument(
        "--format",
        choices=DATASET_FORMATS,
        metavar="FORMAT",
        default=None if with_config else "auto",
        help=f"format of the data set: {', '.join(DATASET_FORMATS)} ({_default('auto', with_config)})",
    )
    parser.add_argument(
        "--classes",
        metavar="JSON",
        help='classes to rename, merge and leave out (null), such as \'{"crack": "defect", "dust": null}\'',
    )


def _default(value: str, with_config: bool) -> str:
    """The default as help shows it: of the flag, or of the recipe."""
    return f"default: {value}, or as in --config" if with_config else "default: %(default)s"


def add_evaluate(parser: VerbParser) -> None:
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="COCO JSON file with the ground truth, or another format's"
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        metavar="DIR",
        help="folder of a data set, for --annotations; without both: the data of the model's run",
    )
    parser.add_argument(
        "--split",
        choices=("train", "valid", "test"),
        default="valid",
        help="split of --dataset, or of the model's run (default: %(default)s)",
    )
    add_formats(parser)
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder with the images of the annotations; only it is searched"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", required=True, help="folder for metrics.json and predictions.json"
    )
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE", help="score this COCO results file; no model and images then"
    )
    parser.add_argument(
        "--report", action="store_true", help="also write report.html, report.json and the labels in doubt"
    )
    add_read_rules(parser)
    add_aims(parser)
    add_tta(parser)
    add_compile(parser)
    add_model_options(parser, required=False, limit="100 for the metrics, as in COCO")


def add_predict(parser: VerbParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="image, folder, pattern in quotes, or address (https://…)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="folder for the results")
    add_threshold(parser)
    parser.add_argument(
        "--save",
        metavar="KINDS",
        default="overlays,coco",
        help=f"results to write, separated by commas: {', '.join(SAVEABLE)} (default: %(default)s)",
    )
    parser.add_argument(
        "--segmentation",
        metavar="KIND",
        default="rle",
        help="masks of the outputs coco and label-studio: rle (brushes), or polygons (default: %(default)s)",
    )
    parser.add_argument(
        "--colours", metavar="RULE", default="auto", help="of overlays: class, instance or auto (default: %(default)s)"
    )
    add_tiles(parser)
    add_compile(parser)
    add_model_options(parser, required=True)


def add_batch_predict(parser: VerbParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image, folder, pattern in quotes, or list of images (.txt, .parquet); a path or a URI such as "
        "s3://bucket/folder",
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="folder or URI for the Parquet files")
    add_threshold(parser)
    add_tiles(parser)
    parser.add_argument(
        "--column",
        metavar="NAME",
        help="column of a Parquet list that names the images (default: image, uri, url or path)",
    )
    parser.add_argument(
        "--shard-size",
        type=positive,
        metavar="N",
        default=1000,
        help="number of images per Parquet file (default: %(default)s)",
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="also predict the images that failed in earlier runs"
    )
    parser.add_argument(
        "--ray-address",
        metavar="A",
        help="address of a Ray cluster, or auto for the one of this machine (default: start one for this run)",
    )
    parser.add_argument(
        "--actors",
        type=positive,
        metavar="N",
        help="number of model copies (default: one per GPU, or one per node without GPUs)",
    )
    parser.add_argument(
        "--cpus-per-actor",
        type=real_number,
        metavar="N",
        help="CPUs reserved per actor (default: the node's CPUs minus 0.5 kept for image readers)",
    )
    parser.add_argument(
        "--gpus-per-actor",
        type=real_number,
        metavar="F",
        help="GPUs reserved per actor, 0 to 1 (default: 1 if the cluster has GPUs, otherwise 0)",
    )
    add_model_options(parser, required=True)


def add_check_data(parser: VerbParser) -> None:
    parser.add_argument(
        "dataset_name", type=Path, nargs="?", metavar="PATH", help="folder of a data set, or its one file"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to this JSON file")
    add_formats(parser, with_config=True)
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="also write DIR/report.html, a page with pictures; not in the data"
    )
    parser.add_argument(
        "--suggest", type=Path, metavar="FILE", help="also write a recipe for `train --config` that suits the data"
    )
    parser.add_argument(
        "--gpu-memory",
        type=positive,
        metavar="GB",
        help="memory of the GPU that --suggest plans for (default: that of this machine's GPU, or a recipe for a CPU)",
    )
    parser.add_argument(
        "--fix", type=Path, metavar="DIR", help="write corrected annotation files to this new folder, and fixes.json"
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="recipe to check the data for: its canvas, num_queries, scales and other options of the data",
    )
    parser.add_argument(
        "--num-queries",
        type=positive,
        metavar="N",
        help="number of queries of the model to train; fuller images are reported (default: 100, or as in --config)",
    )
    for side in ("height", "width"):
        parser.add_argument(
            f"--image-{side}",
            type=positive,
            metavar="N",
            help=f"{side} of the training canvas in pixels; objects too small for it are reported "
            "(default: 1024, or as in --config)",
        )
    add_read_options(parser, "full", "1", "the file's grey or RGB", "fit", "as in --config")
    for option in SPLIT_OPTIONS:
        split, kind = option.split("_")
        text = "COCO JSON file" if kind == "annotations" else "folder with the images"
        metavar = "FILE" if kind == "annotations" else "DIR"
        parser.add_argument(
            f"--{split}-{kind}", type=Path, metavar=metavar, help=f"{text} of the {split} split, if not detected"
        )
    parser.add_argument(
        "--valid-split",
        type=real_number,
        metavar="F",
        help="fraction of the training images used for validation without a validation split (default: 0.1, or as in "
        "--config)",
    )
    add_read_rules(parser, with_config=True)


def add_convert_data(parser: VerbParser) -> None:
    parser.add_argument(
        "dataset_name", type=Path, metavar="IN", help="folder of a data set, or its one file, in any format"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="new or empty folder for the result")
    parser.add_argument(
        "--to", choices=("coco", "yolo"), default="coco", help="format of the result (default: %(default)s)"
    )
    parser.add_argument(
        "--copy-images",
        action="store_true",
        help="copy the images too; otherwise COCO file names lead to where they are (YOLO's are always copied)",
    )
    add_formats(parser)


def add_convert(parser: VerbParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="model or backbone to convert: folder, weights file, or hub id"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="new or empty folder for the result")
    parser.add_argument(
        "--to",
        choices=("transformers", "timm", "meta", "mask2former-dinov3"),
        help="format of the result (default: transformers for a backbone, mask2former-dinov3 for a Mask2Former)",
    )
    parser.add_argument("--with-code", action="store_true", help="save the code with the model, for trust_remote_code")


def add_push(parser: VerbParser) -> None:
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", required=True, help="folder saved by training, such as best/"
    )
    parser.add_argument(
        "--repo", metavar="USER/NAME", required=True, help="repository on the hub, created if it does not exist"
    )
    parser.add_argument("--private", action="store_true", help="make the repository private")
