"""Seconds until `import mask2former_dinov3` is done and until each verb has shown its help, Python's start included."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from mask2former_dinov3.benchmark.row_table import Row
from mask2former_dinov3.benchmark.timing import timed
from mask2former_dinov3.cli.verbs import build_parser
from measure import alternate, options, show


def parser() -> argparse.ArgumentParser:
    parser = options("Seconds of the import and of every verb's --help.", repeat=5)
    parser.add_argument("--verbs", nargs="+", metavar="VERB", help="only these verbs (default: all)")
    return parser


def rows(argv: Sequence[str]) -> list[Row]:
    """One row per command, each run in a new process."""
    args = parser().parse_args(argv)
    commands = {"import mask2former_dinov3": ["-c", "import mask2former_dinov3"]}
    commands |= {f"{verb} --help": ["-m", "mask2former_dinov3", verb, "--help"] for verb in args.verbs or verbs()}

    def command(words: list[str]) -> None:
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)

    works = {name: timed(partial(command, words), "cpu") for name, words in commands.items()}
    return [{"work": name, "ours_seconds": seconds} for name, seconds in alternate(works, args.repeat).items()]


def verbs() -> list[str]:
    """The verbs of the command line, as its parser knows them."""
    found = next(one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    return list(found.choices)


def main(argv: Sequence[str]) -> None:
    show(rows(argv), parser().parse_args(argv).json)


if __name__ == "__main__":
    main(sys.argv[1:])
