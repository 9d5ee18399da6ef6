"""The command `mask2former-dinov3`: one verb per task, each with `--help`.

Exit codes: 0 success; 1 an error that the user can fix, with one message on stderr (a traceback only with
M2F_TRACEBACK=1); 2 wrong usage; 130 Ctrl-C. Imports are inside the functions: `--help` loads neither torch nor NumPy.
This is the only module of the package that prints.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from ..allocator import keep_freed_memory
from ..config.presets import SPLIT_OPTIONS
from ..errors import ConfigError, OptionError, UserError
from ..version import __version__
from .arguments import (
    add_batch_predict,
    add_check_data,
    add_convert,
    add_convert_data,
    add_evaluate,
    add_export,
    add_predict,
    add_push,
    add_train,
)
from .data_options import find_truth, read_classes
from .messages import VisibleFormatter, complain, describe_error, describe_out_of_memory, is_out_of_memory, say
from .parser import SPELLING, VerbParser, find_empty_value, parse_words
from .serving_options import add_serve

if TYPE_CHECKING:
    from ..inference.settings import InferenceSettings

PROGRAM = "mask2former-dinov3"
HEADLINE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "boundary_AP", "box_AP")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Wrong usage raises SystemExit(2), as argparse does."""
    arguments, rest = parse_words(build_parser(), sys.argv[1:] if argv is None else argv)
    verb: VerbParser = arguments.parser
    if rest and arguments.run is not run_train:  # train reads its options from the fields of TrainConfig
        verb.refuse(rest)
    arguments.options = rest
    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    logging.getLogger("mask2former_dinov3").setLevel(logging.INFO if is_main_process() else logging.ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files and classes that its encoding does not have
    traceback = os.environ.get("M2F_TRACEBACK") == "1"
    try:
        if arguments.run is not run_train and (empty := find_empty_value(verb)):
            raise OptionError(empty, "a value", "none")
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        complain(str(stop) or "interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, OSError) as error:
        if traceback:
            raise
        complain(f"error: {describe_error(error, verb, getattr(arguments, 'config', None))}")
        return 1
    except (RuntimeError, MemoryError) as error:
        if traceback or not is_out_of_memory(error):
            raise
        complain(f"error: {describe_out_of_memory(error, verb)}")
        return 1


def is_main_process() -> bool:
    """False in the second and later processes of `accelerate launch`, which would only repeat the first one's notes."""
    return os.environ.get("RANK", "0") == "0"


def build_parser() -> VerbParser:
    """All verbs. A verb is a parser and a function `run_…(arguments) -> exit code`."""
    parser = VerbParser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Mask2Former instance segmentation on DINOv3 backbones, for COCO data.",
        epilog=f"`{PROGRAM} VERB --help` shows the options of a verb. {SPELLING}",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=VerbParser)

    def verb(name: str, run: Callable[[argparse.Namespace], int], summary: str) -> VerbParser:
        added = verbs.add_parser(name, help=summary, description=summary, epilog=SPELLING, allow_abbrev=False)
        added.set_defaults(run=run, parser=added)
        return added

    add_train(verb("train", run_train, "Train on a COCO data set; writes a run folder with best/ and last/."))
    add_evaluate(verb("evaluate", run_evaluate, "Compute the COCO mask AP of a model, or of a predictions file."))
    add_predict(verb("predict", run_predict, "Find instances in images, folders and patterns such as 'shots/*.jpg'."))
    add_batch_predict(
        verb("batch-predict", run_batch_predict, "Find instances in very large sets of images, on a Ray cluster.")
    )
    add_check_data(verb("check-data", run_check_data, "Read a data set and list all errors in it."))
    add_convert_data(verb("convert-data", run_convert_data, "Write a data set of any format as COCO or YOLO."))
    add_convert(verb("convert", run_convert, "Convert weights to and from the formats of transformers, timm and Meta."))
    add_export(verb("export", run_export, "Write a model as an ONNX file, and compare it with torch on real images."))
    add_push(verb("push", run_push, "Upload a model folder to the Hugging Face hub."))
    add_serve(verb("serve", run_serve, "Serve a model as a web page and an HTTP API."))
    demo = verb("demo", run_demo, "Check, train, evaluate and predict on the bundled sample, in minutes.")
    demo.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        default=Path("runs/demo"),
        help="folder for the results (default: %(default)s)",
    )
    parser.verbs = verbs.choices
    return parser


def inference_settings(arguments: argparse.Namespace) -> InferenceSettings:
    """The settings of a verb that predicts, checked."""
    from ..inference.settings import InferenceSettings

    return InferenceSettings(
        threshold=arguments.threshold,
        max_detections=arguments.max_detections,
        batch_size=arguments.batch_size,
        tile=arguments.tile,
        overlap=arguments.overlap,
    )


def run_train(arguments: argparse.Namespace) -> int:
    """Run `train`, also for the launch scripts under `accelerate launch`."""
    from ..config.train_config import load_config

    try:
        config, notes = load_config(arguments.config, arguments.options)
    except ConfigError:
        if is_main_process():
            raise
        return 1  # the main process shows the error
    if is_main_process():
        for note in notes:
            complain(f"note: {note}")
    from ..training.checkpoint import best_folder
    from ..training.train import train

    keep_freed_memory()
    metrics = train(config)
    if is_main_process():
        say("last evaluation" if metrics else "no validation data, so no AP was computed")
        print_metrics(metrics)
        folder = Path(config.output_dir)
        best = best_folder(folder)
        say(f"\nmodel: {best}\nnext: {PROGRAM} predict --model {best} IMAGES --output {folder / 'overlays'}")
    return 0


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Run `evaluate`."""
    of_model = [name for name in ("model", "images") if getattr(arguments, name) is not None]
    if arguments.predictions is not None and of_model:
        arguments.parser.error(f"--predictions: cannot be combined with --{of_model[0]}; give one or the other")
    if (arguments.annotations is None) == (arguments.dataset is None):
        arguments.parser.error("expected --annotations, or --dataset with --split")
    if arguments.predictions is None and len(of_model) < 2 - (arguments.dataset is not None):
        arguments.parser.error("expected --model and --images, or --predictions")
    from ..evaluation.evaluate import evaluate_model

    keep_freed_memory()
    metrics = evaluate_model(
        arguments.model,
        find_truth(arguments),
        arguments.images,
        arguments.output,
        max_detections=arguments.max_detections,
        batch_size=arguments.batch_size,
        device=arguments.device,
        predictions=arguments.predictions,
        progress=sys.stderr.isatty(),
    )
    print_metrics(metrics)
    say(f"\n{arguments.output / 'metrics.json'}\n{arguments.output / 'predictions.json'}")
    return 0


def run_convert_data(arguments: argparse.Namespace) -> int:
    """Run `convert-data`."""
    from ..data.formats.conversion import convert_data
    from ..data.layout import find_splits

    splits, _ = find_splits(
        arguments.dataset_name,
        valid_split=0,
        dataset_format=arguments.format,
        classes=read_classes(arguments),
    )
    say(convert_data(splits, arguments.output, to=arguments.to, copy_images=arguments.copy_images).text())
    return 0


def run_predict(arguments: argparse.Namespace) -> int:
    """Run `predict`; 1 if an input failed, after all others are done."""
    settings = inference_settings(arguments)
    from ..inference.files.predict_files import predict_files

    keep_freed_memory()
    summary = predict_files(
        arguments.model,
        arguments.inputs,
        arguments.output,
        settings=settings,
        save=tuple(kind.strip() for kind in arguments.save.split(",") if kind.strip()),
        device=arguments.device,
        progress=sys.stderr.isatty(),
    )
    say(summary.text())
    return 1 if summary.failed else 0


def run_batch_predict(arguments: argparse.Namespace) -> int:
    """Run `batch-predict`; 1 if an image could not be read, after all others are done."""
    settings = inference_settings(arguments)
    from ..cluster.job import batch_predict

    with redirect_stdout(sys.stderr):  # Ray reports workers and nodes that died on stdout
        summary = batch_predict(
            arguments.model,
            arguments.inputs,
            arguments.output,
            settings=settings,
            column=arguments.column,
            device=arguments.device,
            ray_address=arguments.ray_address,
            actors=arguments.actors,
            cpus_per_actor=arguments.cpus_per_actor,
            gpus_per_actor=arguments.gpus_per_actor,
            shard_size=arguments.shard_size,
            retry_failed=arguments.retry_failed,
            progress=sys.stderr.isatty(),
        )
    say(summary.text())
    return 1 if summary.failed or summary.failed_earlier else 0


def run_check_data(arguments: argparse.Namespace) -> int:
    """Run `check-data`; 1 if an error in the data would stop or spoil training."""
    given = arguments.dataset_name or arguments.train_annotations or arguments.config
    if given is None:
        arguments.parser.error("expected the PATH of a data set, or --train-annotations and --train-images")
    from .doctor import options_of_check, prepare_files, prepare_report_folder, write_outputs

    prepare_files(arguments)
    config = options_of_check(arguments)
    from tqdm import tqdm

    from ..data.check import check_data
    from ..data.layout import find_splits
    from ..data.read_rules import ReadRules

    explicit = {option: getattr(config, option) for option in SPLIT_OPTIONS}
    splits, notes = find_splits(
        config.dataset_name,
        **explicit,
        valid_split=config.valid_split,
        rules=ReadRules(config.crowd, config.incomplete_images),
        dataset_format=config.dataset_format,
        classes=config.classes,
    )
    prepare_report_folder(arguments, splits, config)
    with tqdm(desc="check", unit="image", disable=not sys.stderr.isatty(), leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = check_data(
            splits,
            notes,
            num_queries=None if config.num_queries == "auto" else config.num_queries,
            canvas=(config.image_height, config.image_width),
            options=config.read_options,
            scale_min=config.scale_min,
            progress=progress,
        )
    say(report.text())
    if arguments.json is not None:  # after the text, so that it is not lost if this fails
        text = json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"
        # What UTF-8 does not have, half a surrogate pair in a name, stays as JSON's own escape.
        arguments.json.write_text(text, encoding="utf-8", errors="backslashreplace")
    write_outputs(arguments, splits, report, config, print)
    return 1 if report.errors else 0


def run_convert(arguments: argparse.Namespace) -> int:
    """Run `convert`."""
    from ..export.convert import convert

    say(convert(arguments.source, arguments.output, arguments.to, with_code=arguments.with_code))
    say(arguments.output)
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """Run `export`."""
    from ..export.onnx_export import export

    done = export(
        arguments.model,
        arguments.output,
        size=tuple(arguments.size) if arguments.size else None,
        dynamic=arguments.dynamic,
        precision=arguments.precision,
        with_postprocess=arguments.with_postprocess,
        images=arguments.images,
        calibration_images=arguments.calibration_images,
        say=complain,
    )
    say(done.text())
    return 0


def run_push(arguments: argparse.Namespace) -> int:
    """Run `push`."""
    from ..model_folder.hub import push

    say(push(arguments.model, arguments.repo, private=arguments.private))
    return 0


def run_serve(arguments: argparse.Namespace) -> int:
    """Run `serve`; 0 if a signal has ended it and all accepted requests are answered."""
    from ..serving.limits import Limits
    from ..serving.server import serve

    keep_freed_memory()
    names = ("batch_size", "max_queue", "max_bytes", "max_pixels", "timeout", "max_wait", "max_connections")
    limits = Limits(**{name: getattr(arguments, name) for name in names})
    serve(
        arguments.model,
        host=arguments.host,
        port=arguments.port,
        device=arguments.device,
        limits=limits,
        allowed_hosts=arguments.allowed_host or (),
        metrics=not arguments.no_metrics,
        docs=not arguments.no_docs,
    )
    return 0


def run_demo(arguments: argparse.Namespace) -> int:
    """Run `demo`."""
    from .demo import demo

    return demo(arguments.output, say=say, run=main)


def format_metric(value: object) -> str:
    """A metric as a number, or as a word where COCO leaves it undefined (-1)."""
    return f"{value:.4f}" if isinstance(value, int | float) and value >= 0 else "undefined"


def print_metrics(metrics: Mapping[str, object]) -> None:
    """Print the content of metrics.json as a table; nothing if there is none."""
    if not metrics:
        return
    for name in (name for name in HEADLINE if name in metrics):
        say(f"{name:12} {format_metric(metrics[name])}")
    classes = metrics.get("per_class")
    if isinstance(classes, dict) and len(classes) > 1:
        width = max(map(len, classes))
        say("per class\n" + "\n".join(f"  {name:{width}}  {format_metric(ap)}" for name, ap in classes.items()))
    say(f"{metrics['detections']} detections in {metrics['images']} images, at most {metrics['max_detections']} each")
    notes = metrics.get("notes")
    for note in notes if isinstance(notes, list) else ():
        say(f"note: {note}")
