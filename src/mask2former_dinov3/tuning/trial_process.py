"""The process of a trial: `train`, which is asked to stop when standard input ends.

Standard input is a pipe from the process that started it. So a trial stops with its work saved when it is asked to, and
also when that process is killed: none is left behind that nobody watches.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def stop_with_stdin() -> None:
    """Wait for the end of standard input, then ask this process to stop, as SIGTERM does in `train`."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=stop_with_stdin, daemon=True).start()
    sys.argv[0] = "mask2former-dinov3"
    runpy.run_module("mask2former_dinov3", run_name="__main__", alter_sys=False)
