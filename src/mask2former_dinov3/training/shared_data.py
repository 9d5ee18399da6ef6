"""Read the data set once per machine: the main process of each machine parses it, all processes share its arrays."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from ..data.records import CocoData, load_table
from ..errors import UserError, mismatch, system_reason
from .distributed import run_on_all

Splits = dict[str, CocoData]
_SPLITS = "splits.pickle"


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
    try:
        data = run_on_all(accelerator, lambda: _write(load(), folder) if is_reader else None)
        yield run_on_all(accelerator, lambda: _open(folder) if data is None else data)
    finally:
        if is_reader:
            shutil.rmtree(folder, ignore_errors=True)


def _write(splits: Splits, folder: Path) -> Splits:
    """Write the records of the splits into a folder, which is replaced; returns them over the stored arrays."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
        stored: dict[int, Path] = {}  # splits of one file share their arrays
        for data in splits.values():
            if id(data.images.columns) not in stored:
                stored[id(data.images.columns)] = folder / str(len(stored))
                data.images.save(folder / str(len(stored) - 1))
        mapped = {
            name: replace(data, images=load_table(stored[id(data.images.columns)], data.images.rows))
            for name, data in splits.items()
        }
        (folder / _SPLITS).write_bytes(pickle.dumps(mapped))  # of the tables only their folders
        return mapped
    except OSError as error:
        advice = "free space, or choose another --output-dir"
        reason = mismatch("a folder for the arrays of the data set", system_reason(error), advice)
        raise UserError(f"{folder}: {reason}") from error


def _open(folder: Path) -> Splits:
    """The splits that `_write` stored; their arrays are mapped."""
    splits: Splits = pickle.loads((folder / _SPLITS).read_bytes())  # written by this run a moment ago
    return splits
