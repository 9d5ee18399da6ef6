"""The command `mask2former-dinov3`: one verb per task, each with `--help`.

Exit codes: 0 success, 1 a mistake that the user can mend (one message on stderr; a traceback only with
M2F_TRACEBACK=1), 2 wrong usage, 130 Ctrl-C. Imports are inside the functions: `--help` loads neither torch nor NumPy.
This is the only module of the package that prints.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from ..allocator import keep_freed_memory
from ..version import __version__
from .arguments import (
    SPLIT_OPTIONS,
    VerbParser,
    add_batch_predict,
    add_check_data,
    add_convert,
    add_evaluate,
    add_export,
    add_predict,
    add_push,
    add_serve,
    configuration_help,
)

PROGRAM = "mask2former-dinov3"
HEADLINE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "boundary_AP", "box_AP")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Wrong usage raises SystemExit(2), as argparse does."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    if rest and arguments.run is not run_train:  # train reads its options from the configuration's fields
        arguments.usage.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.options = rest
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    logging.getLogger("mask2former_dinov3").setLevel(logging.INFO if is_main_process() else logging.ERROR)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        complain(str(stop) or "interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("M2F_TRACEBACK") == "1" or not is_users(error):
            raise
        complain(message_of(error))
        return 1


def is_users(error: Exception) -> bool:
    """Errors whose message says what to do; any other RuntimeError is ours and keeps its traceback."""
    return not isinstance(error, RuntimeError) or type(error).__name__ == "OutOfMemoryError"


def message_of(error: Exception) -> str:
    """One message: the kind of error where it tells something, and what to do."""
    if type(error).__name__ == "OutOfMemoryError":
        advice = "lower the batch size (in training with more gradient_accumulation_steps), or the image size"
        return f"out of memory on the device: {str(error).splitlines()[0]}\n  {advice}"
    kind = type(error).__name__
    return f"error: {error}" if kind == "ValueError" else f"{kind}: {error}"


def complain(message: str) -> None:
    """To stderr, so that what a command prints can be piped."""
    print(message, file=sys.stderr, flush=True)


def is_main_process() -> bool:
    """False in the second and later processes of `accelerate launch`, which would only repeat what the first says."""
    return os.environ.get("RANK", "0") == "0"


def build_parser() -> argparse.ArgumentParser:
    """All verbs. A verb is a parser and a function `run_…(arguments) -> exit code`."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Mask2Former instance segmentation on DINOv3 backbones, for COCO data."
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=VerbParser)

    def verb(name: str, run: Callable[[argparse.Namespace], int], summary: str) -> VerbParser:
        added = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        added.set_defaults(run=run, usage=added)
        return added

    train = verb("train", run_train, "Train on a COCO data set; leaves a run folder with best/ and last/.")
    train.appendix = configuration_help
    train.add_argument("--config", metavar="FILE.json", help="options as flat JSON; flags override them")
    add_evaluate(verb("evaluate", run_evaluate, "COCO mask AP of a model, or of a predictions file."))
    add_predict(verb("predict", run_predict, "Find instances in images, folders and patterns such as 'shots/*.jpg'."))
    add_batch_predict(verb("batch-predict", run_batch_predict, "Find instances in very many images, on a Ray cluster."))
    add_check_data(verb("check-data", run_check_data, "Read a data set and list everything that is wrong with it."))
    add_convert(
        verb("convert", run_convert, "Weights from and to other formats; models of others into models of ours.")
    )
    add_export(verb("export", run_export, "Write a model as an ONNX file, checked against torch on real images."))
    add_push(verb("push", run_push, "Upload a model folder to the Hugging Face hub."))
    add_serve(
        verb("serve", run_serve, "A web page and an HTTP API for a model, on this machine unless told otherwise.")
    )
    demo = verb("demo", run_demo, "Check, train, evaluate and predict on the bundled sample, in minutes.")
    demo.add_argument("--output", type=Path, metavar="DIR", default=Path("runs/demo"), help="default: %(default)s")
    return parser


def run_train(arguments: argparse.Namespace) -> int:
    """The verb `train`, which the launch scripts run under `accelerate launch`."""
    from ..config.train_config import load_config
    from ..errors import ConfigError

    try:
        config, notes = load_config(arguments.config, arguments.options)
    except ConfigError:
        if is_main_process():
            raise
        return 1  # the main process says it
    if is_main_process():
        for note in notes:
            complain(f"note: {note}")
    from ..training.checkpoint import best_folder
    from ..training.train import train

    keep_freed_memory()
    metrics = train(config)
    if is_main_process():
        print("last evaluation" if metrics else "no validation data, so no AP")
        print_metrics(metrics)
        folder = Path(config.output_dir)
        best = best_folder(folder)
        print(f"\nmodel: {best}\nlook at it: {PROGRAM} predict --model {best} IMAGES --output {folder / 'overlays'}")
    return 0


def run_evaluate(arguments: argparse.Namespace) -> int:
    """The verb `evaluate`."""
    if (arguments.predictions is None) != (arguments.model is not None and arguments.images is not None):
        arguments.usage.error("give either --model and --images, or --predictions")
    if arguments.predictions is not None and (arguments.model is not None or arguments.images is not None):
        arguments.usage.error("--predictions is scored in place of --model and --images; give one or the other")
    from ..evaluation.evaluate import evaluate_model

    keep_freed_memory()
    metrics = evaluate_model(
        arguments.model,
        arguments.annotations,
        arguments.images,
        arguments.output,
        max_detections=arguments.max_detections,
        batch_size=arguments.batch_size,
        device=arguments.device,
        predictions=arguments.predictions,
        progress=sys.stderr.isatty(),
    )
    print_metrics(metrics)
    print(f"\n{arguments.output / 'metrics.json'}\n{arguments.output / 'predictions.json'}")
    return 0


def run_predict(arguments: argparse.Namespace) -> int:
    """The verb `predict`; 1 when an input failed, after all others are done."""
    from ..inference.files.predict_files import predict_files

    keep_freed_memory()
    summary = predict_files(
        arguments.model,
        arguments.inputs,
        arguments.output,
        threshold=arguments.threshold,
        save=tuple(word.strip() for word in arguments.save.split(",") if word.strip()),
        device=arguments.device,
        batch_size=arguments.batch_size,
        max_detections=arguments.max_detections,
        tile=arguments.tile,
        overlap=arguments.overlap,
        progress=sys.stderr.isatty(),
    )
    print(summary.text())
    return 1 if summary.failed else 0


def run_batch_predict(arguments: argparse.Namespace) -> int:
    """The verb `batch-predict`; 1 when an image could not be read, after all others are done."""
    from ..cluster.job import batch_predict
    from ..inference.settings import InferenceSettings

    with redirect_stdout(sys.stderr):  # Ray tells on stdout of workers and nodes that died
        summary = batch_predict(
            arguments.model,
            arguments.inputs,
            arguments.output,
            settings=InferenceSettings(
                threshold=arguments.threshold,
                max_detections=arguments.max_detections,
                batch_size=arguments.batch_size,
                tile=arguments.tile,
                overlap=arguments.overlap,
            ),
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
    print(summary.text())
    return 1 if summary.failed or summary.failed_earlier else 0


def run_check_data(arguments: argparse.Namespace) -> int:
    """The verb `check-data`; 1 when a fault would stop or spoil training."""
    explicit = {option: getattr(arguments, option) for option in SPLIT_OPTIONS}
    if arguments.path is None and explicit["train_annotations"] is None:
        arguments.usage.error("give the PATH of a data set, or --train-annotations and --train-images")
    from tqdm import tqdm

    from ..data.check import check_data
    from ..data.layout import find_splits

    splits, notes = find_splits(arguments.path, **explicit, valid_split=arguments.valid_split)
    with tqdm(desc="check", unit="image", disable=not sys.stderr.isatty(), leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        canvas = arguments.image_height, arguments.image_width
        report = check_data(splits, notes, num_queries=arguments.num_queries, canvas=canvas, progress=progress)
    print(report.text())
    if arguments.json is not None:  # after the text, which is not lost if this fails
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if report.errors else 0


def run_convert(arguments: argparse.Namespace) -> int:
    """The verb `convert`."""
    from ..export.convert import convert

    print(convert(arguments.source, arguments.output, arguments.to, with_code=arguments.with_code))
    print(arguments.output)
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """The verb `export`."""
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
    print(done.text())
    return 0


def run_push(arguments: argparse.Namespace) -> int:
    """The verb `push`."""
    from ..model_folder.hub import push

    print(push(arguments.model, arguments.repo, private=arguments.private))
    return 0


def run_serve(arguments: argparse.Namespace) -> int:
    """The verb `serve`; 0 when a signal has ended it and everything taken is done."""
    from ..serving.limits import Limits
    from ..serving.server import serve

    keep_freed_memory()
    names = ("batch_size", "max_queue", "max_bytes", "max_pixels", "timeout", "max_wait")
    limits = Limits(**{name: getattr(arguments, name) for name in names})
    serve(arguments.model, host=arguments.host, port=arguments.port, device=arguments.device, limits=limits)
    return 0


def run_demo(arguments: argparse.Namespace) -> int:
    """The verb `demo`."""
    from .demo import demo

    return demo(arguments.output, say=lambda text: print(text, flush=True), run=main)


def shown(value: float) -> str:
    """A metric as a number, or as a word where COCO has none."""
    return "undefined" if value < 0 else f"{value:.4f}"


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """The numbers of metrics.json as a table; -1 is COCO's "nothing to measure"."""
    if not metrics:
        return
    for name in (name for name in HEADLINE if name in metrics):
        value = metrics[name]
        print(f"{name:12} {shown(value)}")
    classes = metrics.get("per_class", {})
    if len(classes) > 1:
        width = max(map(len, classes))
        print("per class\n" + "\n".join(f"  {name:{width}}  {shown(value)}" for name, value in classes.items()))
    print(f"{metrics['detections']} detections in {metrics['images']} images, at most {metrics['max_detections']} each")
    for note in metrics.get("notes", ()):
        print(f"note: {note}")
