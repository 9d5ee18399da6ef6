"""A user's error under a launcher: its message is the last thing that is shown, or it says how to get that."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from mask2former_dinov3.cli import main

MESSAGE = "error: --learning-rte: unknown option; nearest is --learning-rate"
WRONG = ["train", "--dataset-name", "data", "--output-dir", "out", "--learning-rte", "1"]


@pytest.mark.parametrize("rank", [0, 1])
def test_main__leaves_its_error_to_the_launcher_of_several_processes(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setenv("RANK", str(rank))
    assert main(WRONG) == 1
    failure = ProcessFailure(local_rank=rank, pid=1, exitcode=1, error_file=str(file))
    report = str(ChildFailedError("train", {rank: failure})).rstrip("=\n ")
    assert report.endswith(f"traceback : {MESSAGE}")
    assert capsys.readouterr().err == (f"{MESSAGE}\n" if rank == 0 else "")


def test_main__says_how_to_silence_the_launcher_of_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert main(WRONG) == 1
    message, advice = capsys.readouterr().err.splitlines()
    assert message == MESSAGE
    assert "its option --quiet leaves it out" in advice
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert main(WRONG) == 1
    assert capsys.readouterr().err == f"{MESSAGE}\n"
