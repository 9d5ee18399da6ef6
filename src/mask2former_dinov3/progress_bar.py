"""Progress on a terminal as a bar, elsewhere as lines: a log file with carriage returns is one endless line."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)
_SECONDS = 30.0  # between two lines


class ProgressBar(tqdm):
    """tqdm's bar; where stderr is no terminal, a line of the log every 30 seconds instead, and none for quick work."""

    def __init__(self, *arguments: Any, from_first: bool = False, **options: Any) -> None:
        """The arguments of tqdm. from_first: measure the rate from the first update on, which then is no part of it;
        what passes before, such as the start of a cluster, says nothing about the rate."""
        self._from_first = from_first
        self._in_lines = not sys.stderr.isatty()
        if self._in_lines:
            options |= {"file": io.StringIO(), "mininterval": _SECONDS, "maxinterval": 2 * _SECONDS}
        super().__init__(*arguments, **options)

    def update(self, n: float | None = 1) -> bool | None:
        """Count n more; returns whether the state was shown."""
        if self._from_first and not self.disable:
            self._from_first = False
            self.reset()
            self.n = self.initial = self.last_print_n = n or 0
            return False
        return bool(super().update(n))

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Show the state; called by tqdm."""
        if not self._in_lines:
            return bool(super().display(msg, pos))
        if self.initial < self.n < (self.total or 0):
            done = self.format_dict
            rate = done["rate"] or (self.n - self.initial) / max(done["elapsed"], 1e-6)
            left = self.format_interval((self.total - self.n) / rate)
            logger.info("%s: %d of %d %ss, %s left", self.desc.rstrip(": "), self.n, self.total, self.unit, left)
        return True
