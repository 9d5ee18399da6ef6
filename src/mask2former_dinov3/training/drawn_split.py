"""The split that a run draws from one file without a split: kept in the run folder, for `evaluate` and for people."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..atomic_files import remove_folder
from ..config.train_config import TrainConfig
from ..data.formats.conversion import convert_data
from ..data.layout import Split, find_splits
from ..data.read_rules import ReadRules
from .find_data import find_splits_of
from .run import Run

DRAWN_SPLIT = "split"
"""The folder in the run folder: a data set of two COCO files, whose file names lead to the images."""


def keep_drawn_split(run: Run) -> None:
    """Write the parts of a file that this run has divided, at its first step. Raises CheckpointError."""
    sources = {name: data.source for name, data in run.data.items() if name != "test"}
    drawn = {name: source for name, source in sources.items() if source is not None and source.image_ids is not None}
    folder = run.output_dir / DRAWN_SPLIT
    if run.state.step == 0 and folder.exists():  # of a run that ended before its first checkpoint
        remove_folder(folder)
    if len(drawn) == len(sources) > 1 and not folder.exists():
        convert_data({name: replace(split, rules=ReadRules()) for name, split in drawn.items()}, folder)


def splits_of_run(config: TrainConfig, folder: Path, name: str) -> dict[str, Split]:
    """The splits of the run in a folder by name: where it drew the one called `name`, as it was drawn.

    Raises DatasetError where there are none.
    """
    drawn = folder / DRAWN_SPLIT
    if name == "test" or not drawn.is_dir():
        return find_splits_of(config)[0]
    rules = ReadRules(config.crowd, config.incomplete_images)
    return find_splits(drawn, valid_split=0, rules=rules)[0]
