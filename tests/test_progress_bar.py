"""Progress on a terminal and in a log file."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from mask2former_dinov3 import progress_bar
from mask2former_dinov3.progress_bar import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_bar__is_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each update is shown when no time has to pass between two; the bar itself writes nothing."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress_bar, "_SECONDS", 0.0)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar(total=4, desc="predict", unit="image") as bar:
        for _ in range(4):
            bar.update()
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(" images, ")[0] for line in lines] == [f"predict: {done} of 4" for done in (1, 2, 3)]
    assert all(line.endswith(" left") for line in lines)
    assert stream.getvalue() == ""
    caplog.clear()
    monkeypatch.setattr(progress_bar, "_SECONDS", 30.0)
    assert list(ProgressBar([1, 2, 3], desc="quick")) == [1, 2, 3]
    assert not list(ProgressBar(iter([]), disable=True))
    assert not caplog.records


def test_progress_bar__does_not_count_what_passes_before_the_first_update(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    now = 1000.0
    with ProgressBar(total=125, desc="predict", unit="image", from_first=True) as bar:
        bar._time = lambda: now
        for seconds, images in ((100, 1), (31, 62), (31, 62)):  # two images a second, once it works
            now += seconds
            bar.update(images)
        assert bar.n == 125
    assert [record.getMessage() for record in caplog.records] == ["predict: 63 of 125 images, 00:31 left"]
    with ProgressBar(total=3, disable=True, from_first=True) as hidden:
        hidden.update()


def test_progress_bar__is_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar(total=2, desc="predict", unit="image") as bar:
        bar.update(2)
    assert "\rpredict: 100%" in stream.getvalue()
    assert not caplog.records
