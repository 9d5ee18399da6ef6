"""Where the bundled sample data set and its trained model lie."""

from __future__ import annotations

from pathlib import Path

SAMPLE = Path(__file__).with_name("sample")  # the bundled data set, a trained model in it
