"""Read the options about data: format, classes, the split to score against, how image files are read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.class_option import parse_class_map
from ..errors import ConfigError, OptionError
from ..read_options import ReadChanges
from .parser import VerbParser, positive

if TYPE_CHECKING:
    from ..data.layout import Split

SAVED = "as saved with the model"


def find_truth(arguments: argparse.Namespace) -> Split:
    """The split that `evaluate` scores against. Raises OptionError where the data set has no such split."""
    from ..data.layout import Split, find_splits
    from ..data.read_rules import ReadRules

    classes, dataset_format, file = read_classes(arguments), arguments.format, arguments.annotations
    rules = ReadRules(arguments.crowd, arguments.incomplete_images)
    if file is None and arguments.dataset is None:
        return split_of_run(arguments.model, arguments.split)
    if arguments.dataset is not None:
        splits, _ = find_splits(
            arguments.dataset, dataset_format=dataset_format, classes=classes, valid_split=0, rules=rules
        )
        if arguments.split not in splits:
            raise OptionError("split", f"a split of {arguments.dataset}: {', '.join(splits)}", arguments.split)
        return splits[arguments.split]
    if dataset_format == "coco" or (dataset_format == "auto" and (file.suffix == ".json" or not file.exists())):
        named = arguments.images is not None
        images = arguments.images if named else file.parent
        return Split("evaluate", file, images, only_images=named, rules=rules, classes=classes)
    splits, _ = find_splits(
        None,
        valid_annotations=file,
        valid_images=arguments.images,
        dataset_format=dataset_format,
        classes=classes,
        valid_split=0,
        rules=rules,
    )
    return splits["valid"]


def split_of_run(model: str, name: str) -> Split:
    """The split that the run of a model folder (`RUN/best`) trained, validated or tested on, read as there.

    Raises OptionError for a model that is not in a run folder, or a run without this split.
    """
    from ..config.train_config import load_config
    from ..training.drawn_split import splits_of_run

    options = Path(model).resolve().parent / "train_config.json"
    if not options.is_file():
        expected = "a file, a --dataset, or a --model in its run folder, whose data are then used"
        raise OptionError("annotations", expected, f"neither, and no {options}")
    splits = splits_of_run(load_config(options)[0], options.parent, name)
    if name not in splits:
        raise OptionError("split", f"a split of {options}: {', '.join(splits)}", name)
    return splits[name]


def read_classes(arguments: argparse.Namespace) -> dict[str, str | None] | None:
    """The option `--classes`. Raises ConfigError for a text that is no map of classes."""
    if arguments.classes is None:
        return None
    try:
        return parse_class_map(arguments.classes)
    except ValueError as error:
        raise ConfigError(f"--classes: {error}") from error


def add_read_options(
    parser: VerbParser,
    value_range: str = "",
    page: str = "",
    channels: str = "",
    image_scale: str = "",
    otherwise: str = "",
) -> None:
    """The options that say how images are read and scaled. Their defaults, for the help; without them a model's."""
    own = (value_range, page, channels, image_scale)
    values = [", or ".join(filter(None, (value, otherwise))) or SAVED for value in own]
    parser.add_argument(
        "--value-range",
        metavar="RANGE",
        help='values that become black and white, in images of more than 8 bits per channel: "full", "percentile" or '
        f"LOW,HIGH (default: {values[0]})",
    )
    parser.add_argument(
        "--page", type=positive, metavar="N", help=f"page or frame of files with several (default: {values[1]})"
    )
    parser.add_argument(
        "--channels",
        metavar="N,N,N",
        help="channels to read, counted from 1: one (grey), three (red, green, blue) or more, or all "
        f"(default: {values[2]})",
    )
    parser.add_argument(
        "--image-scale",
        metavar="SCALE",
        help="fit: images are fitted into the canvas; native: they keep their own scale, larger ones are predicted in "
        f"tiles; a number: as native, enlarged by this factor (default: {values[3]})",
    )
    add_extra_images(parser)


def add_extra_images(parser: VerbParser) -> None:
    """The option that says where second files are; no model has it saved."""
    parser.add_argument(
        "--extra-images",
        metavar="WHERE",
        help="second file of each image, such as its depth: a folder with files of the same names but for the ending, "
        "or a pattern such as '{folder}/../depth/{stem}.png' (default: none)",
    )


def read_changes(arguments: argparse.Namespace) -> ReadChanges:
    """What flags say about reading image files, instead of what is saved with the model. Raises OptionError."""
    return ReadChanges(
        arguments.value_range, arguments.page, arguments.channels, arguments.extra_images, arguments.image_scale
    )
