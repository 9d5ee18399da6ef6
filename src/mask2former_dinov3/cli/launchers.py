"""Errors under `accelerate launch` and torchrun, whose own tracebacks come after the message of the process."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # https://docs.pytorch.org/docs/stable/elastic/errors.html
_OF_ACCELERATE = "ACCELERATE_MIXED_PRECISION"  # set by `accelerate launch`


def tell_launcher(message: str) -> str:
    """Give the launcher the error that ends this process; returns what else to print after it, or an empty text.

    The launcher of several processes ends its own report with this message. That of one process shows a traceback of
    its own, which it leaves out with `--quiet`.
    """
    if file := os.environ.get(_ERROR_FILE):
        content = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
        Path(file).write_text(json.dumps(content), encoding="utf-8")
        return ""
    if _OF_ACCELERATE in os.environ and "RANK" not in os.environ:
        return "(a traceback after this line is that of `accelerate launch`; its option --quiet leaves it out)"
    return ""
