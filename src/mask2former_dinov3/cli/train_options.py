"""Where `train` reads its options from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def options_of_train(file: str | None, words: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """The JSON file and the flags that `train` reads its options from.

    Without a file, a run that goes on takes the options that it was started with, and a new one the recipe `auto`; a
    model to start from has options of its own.
    """
    from ..config.parsing import read_flags

    given, _, _ = read_flags(words, ())
    if file is not None or given.keys() & {"recipe", "head"}:
        return file, words
    if "resume_from_checkpoint" not in given:
        return None, [*words, "--recipe", "auto"]
    started = Path(str(given.get("output_dir"))) / "train_config.json"
    return (str(started) if started.is_file() else None), words
