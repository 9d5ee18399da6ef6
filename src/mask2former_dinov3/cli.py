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
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .memory import keep_freed_memory

PROGRAM = "mask2former-dinov3"
SAVEABLE = ("overlays", "masks", "coco")
HEADLINE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "boundary_AP", "box_AP")
SPLIT_OPTIONS = tuple(f"{split}_{part}" for split in ("train", "valid", "test") for part in ("annotations", "images"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Wrong usage raises SystemExit(2), as argparse does."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    if rest and arguments.run is not run_train:  # train reads its options from the configuration's fields
        arguments.usage.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.options = rest
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    logging.getLogger(__package__).setLevel(logging.INFO if is_main_process() else logging.ERROR)
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
    add_check_data(verb("check-data", run_check_data, "Read a data set and list everything that is wrong with it."))
    add_convert(
        verb("convert", run_convert, "Weights from and to other formats; models of others into models of ours.")
    )
    add_push(verb("push", run_push, "Upload a model folder to the Hugging Face hub."))
    demo = verb("demo", run_demo, "Check, train, evaluate and predict on the bundled sample, in minutes.")
    demo.add_argument("--output", type=Path, metavar="DIR", default=Path("runs/demo"), help="default: %(default)s")
    return parser


class VerbParser(argparse.ArgumentParser):
    """A parser whose help can end with text that is made only when it is asked for."""

    appendix: Callable[[], str] | None = None

    def format_help(self) -> str:
        return super().format_help() + (self.appendix() if self.appendix else "")


def configuration_help() -> str:
    """The fields of the configuration, which are the flags of `train`."""
    from .config import TrainConfig

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
        "--model", metavar="M", required=required, help="folder saved by training (such as best/), or a hub id"
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


def run_train(arguments: argparse.Namespace) -> int:
    """The verb `train`, which the launch scripts run under `accelerate launch`."""
    from .config import load_config
    from .errors import ConfigError

    try:
        config, notes = load_config(arguments.config, arguments.options)
    except ConfigError:
        if is_main_process():
            raise
        return 1  # the main process says it
    if is_main_process():
        for note in notes:
            complain(f"note: {note}")
    from .checkpoint import best_folder
    from .train import train

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
    from .evaluate import evaluate_model

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
    """The verb `predict`; 1 when an input could not be read, after all others are done."""
    from .predict import predict_files

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
        progress=sys.stderr.isatty(),
    )
    print(summary.text())
    return 1 if summary.failed else 0


def run_check_data(arguments: argparse.Namespace) -> int:
    """The verb `check-data`; 1 when a fault would stop or spoil training."""
    explicit = {option: getattr(arguments, option) for option in SPLIT_OPTIONS}
    if arguments.path is None and explicit["train_annotations"] is None:
        arguments.usage.error("give the PATH of a data set, or --train-annotations and --train-images")
    from tqdm import tqdm

    from .data.check import check_data
    from .data.layout import find_splits

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
    from .converting import convert

    print(convert(arguments.source, arguments.output, arguments.to, with_code=arguments.with_code))
    print(arguments.output)
    return 0


def run_push(arguments: argparse.Namespace) -> int:
    """The verb `push`."""
    from .hub import push

    print(push(arguments.model, arguments.repo, private=arguments.private))
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
