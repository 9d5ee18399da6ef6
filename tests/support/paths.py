"""Folders that tests read: of the repository and, where it is present, of the shared data beside it."""

from __future__ import annotations

from pathlib import Path

import mask2former_dinov3

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
PACKAGE = Path(mask2former_dinov3.__file__).parent
BENCHMARKS = ROOT / "benchmarks"
DOCS = ROOT / "docs"
SHARED = ROOT.resolve().parent / "shared" / "data"
