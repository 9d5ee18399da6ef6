"""Read the data set once per machine: the main process of each machine parses it, all processes share its arrays."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from ..atomic_files import write_text
from ..data.records import Category, CocoData, load_table
from ..errors import UserError, mismatch, system_reason
from ..json_files import read_json_object
from .distributed import run_on_all

Splits = dict[str, CocoData]


@contextmanager
def share_data(accelerator: Accelerator, output_dir: Path, load: Callable[[], Splits]) -> Iterator[Splits]:
    """The splits by name, read by `load` on the main process of each machine; every process must call this.

    Where processes or workers could not share the memory of that process, the arrays are written to a folder of the run
    (never beside the data), which all of them map, and which is removed at the end. Raises what `load` raises, and
    UserError where the folder cannot be written.
    """
    folder = output_dir / f"data_index-{socket.gethostname()}"  # a run folder may be shared between machines
    is_reader = accelerator.is_local_main_process
    if accelerator.num_processes == 1 and multiprocessing.get_start_method() == "fork":
        yield load()
        return
    data = run_on_all(accelerator, lambda: _write(load(), folder) if is_reader else None)
    try:
        yield run_on_all(accelerator, lambda: _open(folder) if data is None else data)
    finally:
        if is_reader:
            shutil.rmtree(folder, ignore_errors=True)


def _write(splits: Splits, folder: Path) -> Splits:
    """Write the records of the splits into a folder, which is replaced; returns them over the stored arrays."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
        stored: dict[int, Path] = {}  # splits of one file share their arrays
        content = {}
        for name, data in splits.items():
            key = id(data.images.columns)
            if key not in stored:
                stored[key] = folder / str(len(stored))
                data.images.save(stored[key])
            np.save(folder / f"{name}.npy", data.images.rows)
            content[name] = {
                "annotations": str(data.annotations),
                "categories": [[category.id, category.name] for category in data.categories],
                "arrays": stored[key].name,
            }
        write_text(folder / "splits.json", json.dumps(content))
        return _open(folder)
    except OSError as error:
        advice = "free space, or choose another --output-dir"
        reason = mismatch("a folder for the arrays of the data set", system_reason(error), advice)
        raise UserError(f"{folder}: {reason}") from error


def _open(folder: Path) -> Splits:
    """The splits that `_write` stored; their arrays are mapped."""
    content = read_json_object(folder / "splits.json")
    return {
        name: CocoData(
            Path(one["annotations"]),
            tuple(Category(*category) for category in one["categories"]),
            load_table(folder / one["arrays"], np.load(folder / f"{name}.npy")),
        )
        for name, one in content.items()
    }
