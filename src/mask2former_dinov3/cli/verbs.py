"""The command `mask2former-dinov3`: one verb per task, each with `--help`.

Exit codes: 0 success; 1 an error that the user can fix, with one message on stderr (a traceback only with
M2F_TRACEBACK=1); 2 wrong usage; 130 Ctrl-C. Imports are inside the functions: `--help` loads neither torch nor NumPy.
This is the only module of the package that prints.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from ..allocator import keep_freed_memory
from ..errors import ConfigError, OptionError, UserError, is_out_of_memory, is_shared, mark_shared
from ..version import __version__
from .arguments import (
    add_batch_predict,
    add_check_data,
    add_convert,
    add_convert_data,
    add_evaluate,
    add_predict,
    add_push,
    add_train,
)
from .benchmark_options import add_benchmark, run_benchmark
from .comparing import add_compare, add_rank_images, run_compare, run_rank_images
from .data_options import find_truth, read_changes, read_classes
from .exporting import add_check_export, add_export, run_check_export, run_export
from .launchers import tell_launcher
from .messages import VisibleFormatter, complain, describe_error, describe_out_of_memory, say
from .metrics_text import metric_lines
from .parser import SPELLING, VerbParser, find_empty_value, parse_words
from .serving_options import add_serve
from .threshold_options import add_set_threshold, read_aim, run_set_threshold
from .train_end import PROGRAM, end_lines
from .train_options import options_of_train
from .tuning_options import add_tune, run_tune

if TYPE_CHECKING:
    from ..inference.settings import InferenceSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Wrong usage raises SystemExit(2), as argparse does."""
    arguments, rest = parse_words(build_parser(), sys.argv[1:] if argv is None else argv)
    verb: VerbParser = arguments.parser
    has_recipe = arguments.run in (run_train, run_tune)  # whose options are the fields of TrainConfig
    if rest and not has_recipe:
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
        if not has_recipe and (empty := find_empty_value(verb)):
            raise OptionError(empty, "a value", "none")
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        if is_main_process() or not is_shared(stop):
            complain(str(stop) or "interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, OSError) as error:
        if traceback:
            raise
        message = f"error: {describe_error(error, verb, getattr(arguments, 'config', None))}"
        return fail(message, is_shown=is_main_process() or not is_shared(error))
    except (RuntimeError, MemoryError) as error:
        if traceback or not is_out_of_memory(error):
            raise
        return fail(f"error: {describe_out_of_memory(error, verb)}")


def fail(message: str, *, is_shown: bool = True) -> int:
    """Show the error that ends this process, and leave it to the launcher; returns the exit code.

    is_shown: False where the main process shows the same one.
    """
    advice = tell_launcher(message)
    if is_shown:
        complain("\n".join([message, *([advice] if advice else [])]))
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
    add_tune(verb("tune", run_tune, "Search for the best options of `train`, with many trials on a Ray cluster."))
    add_evaluate(verb("evaluate", run_evaluate, "Compute the COCO mask AP of a model, or of a predictions file."))
    add_set_threshold(
        verb("set-threshold", run_set_threshold, "Store the score threshold of an evaluation in a model folder.")
    )
    add_compare(verb("compare", run_compare, "Compare evaluations of models: AP with intervals, what changed where."))
    add_rank_images(verb("rank-images", run_rank_images, "Rank unlabelled images by what labelling them would teach."))
    add_predict(verb("predict", run_predict, "Find instances in images, folders and patterns such as 'shots/*.jpg'."))
    add_batch_predict(
        verb("batch-predict", run_batch_predict, "Find instances in very large sets of images, on a Ray cluster.")
    )
    add_check_data(verb("check-data", run_check_data, "Read a data set and list all errors in it."))
    add_convert_data(verb("convert-data", run_convert_data, "Write a data set of any format as COCO or YOLO."))
    add_convert(verb("convert", run_convert, "Convert weights to and from the formats of transformers, timm and Meta."))
    add_export(verb("export", run_export, "Write a model as an ONNX file, and compare it with torch on real images."))
    add_check_export(
        verb("check-export", run_check_export, "Compare an exported file with its model, in a runtime of this machine.")
    )
    add_benchmark(verb("benchmark", run_benchmark, "Measure speed, memory and AP of a model here, in each runtime."))
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
        copy_overlap=arguments.copy_overlap,
        tta=arguments.tta,
    )


def run_train(arguments: argparse.Namespace) -> int:
    """Run `train`, also for the launch scripts under `accelerate launch`."""
    from ..config.train_config import load_config

    source, words = options_of_train(arguments.config, arguments.options)
    try:
        config, notes = load_config(source, words)
    except ConfigError as error:
        raise mark_shared(error) from None
    if is_main_process():
        for note in notes:
            complain(f"note: {note}")
    from ..training.train import train

    keep_freed_memory()
    metrics = train(config)
    if is_main_process():
        say("\n".join(end_lines(Path(config.output_dir), metrics)))
    return 0


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Run `evaluate`."""
    of_model = [name for name in ("model", "images") if getattr(arguments, name) is not None]
    if arguments.report and of_model == ["images"]:
        of_model = []  # for the pictures
    if arguments.predictions is not None and of_model:
        advice = "add --report, whose pictures need them" if of_model == ["images"] else "give one or the other"
        arguments.parser.error(f"--predictions: cannot be combined with --{of_model[0]}; {advice}")
    if arguments.predictions is not None and arguments.tta != "none":
        arguments.parser.error("--predictions: cannot be combined with --tta, which is for a --model")
    given = [name for name in ("annotations", "dataset") if getattr(arguments, name) is not None]
    if len(given) == 2:
        arguments.parser.error("expected --annotations, or --dataset with --split")
    if not given and (arguments.model is None or arguments.images is not None):
        arguments.parser.error("expected --annotations or --dataset, or a --model in its run folder")
    if arguments.predictions is None and len(of_model) < 2 - (given != ["annotations"]):
        arguments.parser.error("expected --model and --images, or --predictions")
    from ..evaluation.evaluate import evaluate_model

    keep_freed_memory()
    metrics = evaluate_model(
        arguments.model,
        find_truth(arguments),
        arguments.images,
        arguments.output,
        max_detections=arguments.max_detections or 100,
        batch_size=arguments.batch_size,
        tta=arguments.tta,
        device=arguments.device,
        reading=read_changes(arguments),
        compile_model=arguments.compile,
        predictions=arguments.predictions,
        aim=read_aim(arguments),
        progress=True,
    )
    print_metrics(metrics)
    say(f"\n{arguments.output / 'metrics.json'}\n{arguments.output / 'predictions.json'}")
    if arguments.report:
        from ..reports.evaluation_report import report_folder

        say(report_folder(arguments.output, images=arguments.images))
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
        segmentation=arguments.segmentation,
        colours=arguments.colours,
        device=arguments.device,
        reading=read_changes(arguments),
        compile_model=arguments.compile,
        progress=True,
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
            reading=read_changes(arguments),
            ray_address=arguments.ray_address,
            actors=arguments.actors,
            cpus_per_actor=arguments.cpus_per_actor,
            gpus_per_actor=arguments.gpus_per_actor,
            shard_size=arguments.shard_size,
            retry_failed=arguments.retry_failed,
            progress=True,
        )
    say(summary.text())
    return 1 if summary.failed or summary.failed_earlier else 0


def run_check_data(arguments: argparse.Namespace) -> int:
    """Run `check-data`; 1 if an error in the data would stop or spoil training."""
    from .doctor import check_dataset

    return check_dataset(arguments)


def run_convert(arguments: argparse.Namespace) -> int:
    """Run `convert`."""
    from ..export.convert import convert

    say(convert(arguments.source, arguments.output, arguments.to, with_code=arguments.with_code))
    say(arguments.output)
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
        reading=read_changes(arguments),
        compile_model=arguments.compile,
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


def print_metrics(metrics: Mapping[str, object]) -> None:
    """Print the content of metrics.json as a table; nothing if there is none."""
    if metrics:
        say("\n".join(metric_lines(metrics)))
