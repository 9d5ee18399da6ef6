"""The process of a trial: `train`, which is asked to stop when standard input ends.

Standard input is a pipe from the process that started it. So a trial stops with its work saved when it is asked to, and
also when that process is killed: none is left behind that nobody watches. `FOLDER train …` are its arguments.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

from ..errors import OptionError
from ..folder_lock import hold_folder

_LOCK_SECONDS = 300


def stop_with_stdin() -> None:
    """Wait for the end of standard input, then ask this process to stop, as SIGTERM does in `train`."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def wait_for_folder(folder: Path, seconds: float = _LOCK_SECONDS) -> None:
    """Wait until no other process holds the run folder: that of a killed search may still save the same trial.

    After `seconds` the wait is given up, and `train` then says who holds it.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with hold_folder(folder, "output_dir", "tune"):
                return
        except OptionError:
            time.sleep(0.5)


if __name__ == "__main__":
    threading.Thread(target=stop_with_stdin, daemon=True).start()
    wait_for_folder(Path(sys.argv.pop(1)))
    sys.argv[0] = "mask2former-dinov3"
    runpy.run_module("mask2former_dinov3", run_name="__main__", alter_sys=False)
