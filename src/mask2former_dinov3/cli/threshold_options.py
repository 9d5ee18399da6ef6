"""Options on the score threshold: the one to use, what to choose it for, and the verb `set-threshold`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .messages import say
from .parser import VerbParser, real_number

if TYPE_CHECKING:
    from ..evaluation.operating_point import Aim

_AIMS = ("target_precision", "target_recall", "cost_fp", "cost_fn")


def add_threshold(parser: VerbParser) -> None:
    parser.add_argument(
        "--threshold",
        type=real_number,
        metavar="T",
        help="minimum score of a reported instance (default: the one stored in the model, or 0.5)",
    )
    parser.add_argument(
        "--copy-overlap",
        type=real_number,
        metavar="F",
        help="drop instances of which more than this fraction lies in a better one of their class; 1: none (default: "
        "as stored in the model, or none)",
    )
    add_tta(parser)


def add_tta(parser: VerbParser) -> None:
    parser.add_argument(
        "--tta",
        choices=("none", "horizontal", "both", "all"),
        default="none",
        help="test-time augmentation: also predict mirrored copies (horizontal: 2 views; both: 4) and turned ones (all "
        "8), and merge; takes as many times as long (default: %(default)s)",
    )


def add_aims(parser: VerbParser) -> None:
    """Add what a threshold is chosen for."""
    aims = parser.add_mutually_exclusive_group()
    aims.add_argument(
        "--target-precision",
        type=real_number,
        metavar="P",
        help="choose the score threshold with the highest recall at this precision (default: the best F1)",
    )
    aims.add_argument(
        "--target-recall",
        type=real_number,
        metavar="R",
        help="choose the score threshold with the highest precision at this recall",
    )
    aims.add_argument(
        "--cost-fp",
        type=real_number,
        metavar="C",
        help="choose the score threshold with the lowest cost: of each wrong result this, and ...",
    )
    parser.add_argument("--cost-fn", type=real_number, metavar="C", help="... of each missed object this")


def read_aim(arguments: argparse.Namespace) -> Aim:
    """The aim that the options give. Raises ConfigError for values that cannot be."""
    from ..evaluation.operating_point import Aim

    return Aim(**{name: getattr(arguments, name) for name in _AIMS})


def add_set_threshold(parser: VerbParser) -> None:
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", required=True, help="folder saved by training, such as best/"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--from",
        type=Path,
        metavar="DIR",
        help="output folder of evaluate; its threshold, or the one for a target below",
    )
    source.add_argument("--threshold", type=real_number, metavar="T", help="this threshold")
    add_aims(parser)


def run_set_threshold(arguments: argparse.Namespace) -> int:
    """Run `set-threshold`."""
    evaluation: Path | None = getattr(arguments, "from")
    if evaluation is None and arguments.threshold is None:
        arguments.parser.error("expected --from or --threshold")
    given = [f"--{name.replace('_', '-')}" for name in _AIMS if getattr(arguments, name) is not None]
    if arguments.threshold is not None and given:
        arguments.parser.error(f"{given[0]}: cannot be combined with --threshold")
    from ..evaluation.set_threshold import set_threshold

    aim = read_aim(arguments) if given else None
    for line in set_threshold(arguments.model, evaluation, arguments.threshold, aim):
        say(line)
    return 0
