"""One command at a time in an output folder: refused while it runs, free as soon as it has ended, however it ended."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mask2former_dinov3.errors import CheckpointError, OptionError
from mask2former_dinov3.folder_lock import LOCK_FILE, hold_folder
from support.paths import SOURCE

HOLD = """
import os, sys
from pathlib import Path
from mask2former_dinov3.folder_lock import hold_folder
with hold_folder(Path(sys.argv[1]), "output", "predict"):
    child = os.fork()  # as data workers are: it outlives its parent
    if not child:
        os.close(1)
        import time; time.sleep(60)
    print(child, flush=True)
    sys.stdin.read()
"""


def test_hold_folder__is_refused_while_another_process_holds_it(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(words, stdin=-1, stdout=-1, env=environment) as holder:
        assert holder.stdout is not None
        worker = int(holder.stdout.readline())
        holds = f"in use by predict (process {holder.pid} on {socket.gethostname()}, since "
        with pytest.raises(OptionError, match=re.escape(holds)), hold_folder(tmp_path / "out", "output", "evaluate"):
            pass
        assert json.loads((tmp_path / "out" / LOCK_FILE).read_text())["pid"] == holder.pid
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with hold_folder(tmp_path / "out", "output", "evaluate"):  # though the child of the killed process lives
            assert psutil.pid_exists(worker)
            record = json.loads((tmp_path / "out" / LOCK_FILE).read_text())
        os.kill(worker, signal.SIGKILL)
    assert (record["pid"], record["verb"]) == (os.getpid(), "evaluate")
    assert not (tmp_path / "out" / LOCK_FILE).exists()


def test_hold_folder__is_refused_within_one_process_and_leaves_no_new_folder(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "out", "output", "predict"):
        message = (
            f"output: expected a folder that no other command is writing to, got {tmp_path / 'out'}, in use by "
            "a command of this process; wait for it, or choose another"
        )
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"), hold_folder(tmp_path / "out", "output", "x"):
            pass
        with hold_folder(tmp_path / "out", "output", "export", ".a.onnx.in-use.json"):
            pass  # another lock of the same folder
    assert not (tmp_path / "out").exists()
    with hold_folder(tmp_path / "new" / "deep" / "out", "output", "predict"):
        (tmp_path / "new" / "other").mkdir()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["other"]
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be made or written"), hold_folder(tmp_path / "file", "o", "x"):
        pass


@pytest.mark.parametrize("other", ["running", "ended", "id used again", "another machine", "damaged"])
def test_hold_folder__without_locks_decides_by_the_process(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    parent = psutil.Process(os.getppid())
    record = {"host": socket.gethostname(), "pid": parent.pid, "started": parent.create_time(), "verb": "train"}
    if other == "ended":
        record["pid"] = 2**22 + 1  # above the largest number of a process
    if other == "id used again":
        record["started"] = parent.create_time() - 1000
    if other == "another machine":
        record["host"] = "elsewhere"
    text = "{" if other == "damaged" else json.dumps(record)
    (tmp_path / LOCK_FILE).write_text(text)
    if other in ("running", "another machine"):
        advice = f"if it has ended, remove {tmp_path / LOCK_FILE} (this file system has no locks)"
        with pytest.raises(OptionError, match=re.escape(advice)), hold_folder(tmp_path, "output_dir", "train"):
            pass
        return
    with hold_folder(tmp_path, "output_dir", "train"):
        assert "this file system has no locks" in caplog.text
