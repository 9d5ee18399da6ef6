"""`check-data`: how it runs, the options it takes from a recipe, and what it writes beside its text."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic_files import write_text
from ..canvas import check_canvas
from ..config.presets import SPLIT_OPTIONS
from ..config.train_config import TrainConfig, load_config
from ..errors import DatasetError, OptionError
from ..read_options import check_channels
from .data_options import read_classes
from .messages import say

if TYPE_CHECKING:
    from ..data.check import Report
    from ..data.layout import Split
    from ..reports.data_sections import TrainingView

_FLAGS = (
    *("dataset_name", *SPLIT_OPTIONS, "valid_split", "image_height", "image_width", "num_queries"),
    *("crowd", "incomplete_images", "value_range", "page", "channels", "extra_images", "image_scale"),
)


def check_dataset(arguments: argparse.Namespace) -> int:
    """Run `check-data`; 1 if an error in the data would stop or spoil training."""
    given = arguments.dataset_name or arguments.train_annotations or arguments.config
    if given is None:
        arguments.parser.error("expected the PATH of a data set, or --train-annotations and --train-images")
    prepare_files(arguments)
    config = options_of_check(arguments)
    from ..data.check import check_data
    from ..progress_bar import ProgressBar
    from ..training.find_data import find_splits_of

    splits, notes = find_splits_of(config)
    prepare_report_folder(arguments, splits, config)
    with ProgressBar(desc="check", unit="image", leave=False) as bar:

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
        write_text(arguments.json, text.encode(errors="backslashreplace").decode())
    write_outputs(arguments, splits, report, config)
    return 1 if report.errors else 0


def options_of_check(arguments: argparse.Namespace) -> TrainConfig:
    """The options that the data is checked for: defaults < `--config` < flags.

    Raises ConfigError for a recipe that cannot be read, OptionError for a canvas that no training takes.
    """
    given = {name: getattr(arguments, name) for name in _FLAGS if getattr(arguments, name) is not None}
    if arguments.format is not None:
        given["dataset_format"] = arguments.format
    if (classes := read_classes(arguments)) is not None:
        given["classes"] = classes
    if arguments.channels is not None:
        channels = check_channels(arguments.channels)
        given["channels"] = list(channels) if isinstance(channels, tuple) else channels
    texts = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    data = {name: value for name, value in texts.items() if name in ("dataset_name", *SPLIT_OPTIONS)}
    config, _ = load_config(arguments.config, {**data, "output_dir": "unused"})
    config = config.model_copy(update=texts)  # flags are checked where they are used, under the names that were typed
    check_canvas(config.image_height, config.image_width)
    return config


def prepare_files(arguments: argparse.Namespace) -> None:
    """Make the folders of the files that are to be written, before the work. Raises UserError where that is refused."""
    if arguments.json is not None:
        _prepare_file("json", arguments.json)
    if arguments.suggest is not None:
        _prepare_file("suggest", arguments.suggest)
        if arguments.suggest.exists():
            raise OptionError("suggest", "a new file", f"{arguments.suggest}, which exists", "choose another name")
    if arguments.fix is not None:
        from ..data.fixes import prepare_folder_of_fixes

        prepare_folder_of_fixes(arguments.fix)


def prepare_report_folder(arguments: argparse.Namespace, splits: Mapping[str, Split], config: TrainConfig) -> None:
    """Make the folder of `--report`, if it is asked for. Raises UserError where it is in the data."""
    if arguments.report is not None:
        from ..reports.data_report import prepare_folder_of_report

        root = None if config.dataset_name is None else Path(config.dataset_name)
        prepare_folder_of_report(arguments.report, splits, root)


def _prepare_file(option: str, path: Path) -> None:
    """Make the folder of a file. Raises OptionError where the file cannot be."""
    if path.is_dir():
        raise OptionError(option, "a file to write", f"{path}, a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OptionError(option, "a file to write", f"{path}, below a file that is no folder") from error


def write_outputs(
    arguments: argparse.Namespace,
    splits: Mapping[str, Split],
    report: Report,
    config: TrainConfig,
) -> None:
    """Write what `--report`, `--fix` and `--suggest` ask for, and say so."""
    if arguments.report is not None:
        from ..reports.data_report import write_data_report

        view = _training_view(arguments, report, config)
        title = Path(config.dataset_name or config.train_annotations or "data").resolve().name
        say(f"report: {write_data_report(report, splits, arguments.report, view, title, options=config.read_options)}")
    if arguments.fix is not None:
        from ..data.fixes import write_fixes

        say(f"\n{write_fixes(report, splits, arguments.fix, config.valid_split, config.read_options).text()}")
    if arguments.suggest is not None:
        from ..training.recipe import suggest_recipe

        recipe = suggest_recipe(report.data.get("train"), config, arguments.gpu_memory)
        recipe.write(arguments.suggest)
        say(f"\n{recipe.text()}\nnext: mask2former-dinov3 train --config {arguments.suggest}")


def _training_view(arguments: argparse.Namespace, report: Report, config: TrainConfig) -> TrainingView | None:
    """The data set that training would read; None without training images."""
    from ..data.channel_statistics import count_channels_of
    from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
    from ..reports.data_sections import TrainingView
    from ..training.batches import training_dataset
    from ..training.imbalance import repeat_factors_of

    data = report.data.get("train")
    if data is None or not data.images:
        return None
    # Its mean and std are taken out again where samples are drawn, so those of the weights are not needed.
    try:
        count, extra = count_channels_of(data.images, config.read_options)
    except DatasetError:
        return None  # the report says why
    size = {"height": config.image_height, "width": config.image_width}
    processor = Mask2FormerDinov3ImageProcessor(size, [0.5] * count, [0.25] * count, extra_channels=extra)
    processor.read_options = config.read_options
    source = f"options of {arguments.config}" if arguments.config else "the defaults of train"
    return TrainingView(training_dataset(config, processor, data), source, repeat_factors_of(config, data))
