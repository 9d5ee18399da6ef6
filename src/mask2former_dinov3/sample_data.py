"""Path of the bundled sample data set."""

from __future__ import annotations

from pathlib import Path

SAMPLE = Path(__file__).with_name("sample")  # `train`, `valid`, and `model`, a model trained on them
