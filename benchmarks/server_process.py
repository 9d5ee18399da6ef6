"""A server (`serve`) as a process of its own, from its start until its port is known."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager


@contextmanager
def start_server(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process of a command that serves, and its port; killed at the end. environment: None for that of this one."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://\S+:(\d+)$", line.strip()):
                break
        else:
            raise SystemExit("the server did not start")
        threading.Thread(
            target=lambda: [None for _ in process.stderr or ()], daemon=True
        ).start()  # else a full pipe stops the server
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait()
