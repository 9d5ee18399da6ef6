"""Refuse a transformers that is older than the code of a model folder needs; there it is imported before all others."""

from __future__ import annotations

import transformers

NEEDED_TRANSFORMERS = "5.23"

if tuple(map(int, transformers.__version__.split(".")[:2])) < tuple(map(int, NEEDED_TRANSFORMERS.split("."))):
    raise ImportError(
        f"the code of this model folder: expected transformers >= {NEEDED_TRANSFORMERS}, got "
        f"{transformers.__version__}; upgrade it with: pip install -U 'transformers>={NEEDED_TRANSFORMERS}'"
    )
