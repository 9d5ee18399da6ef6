"""`max_hours`: how many optimiser steps fit into the hours of a run, by what its steps and evaluations take.

A run of N steps has a schedule over the positions 0 to N, `last_epoch` in torch. Without `max_hours` each step moves it
by one. With it, the time that is left says how many steps are to come, and each of them moves the position by the same
part of what is left of the schedule. So the learning rate changes smoothly whenever the speed does, and the schedule
ends with the time. The hours count from the start of the command, and those before a resume count too.
"""

from __future__ import annotations

import logging
import time

import torch
from accelerate import Accelerator

from .distributed import sum_over_processes

logger = logging.getLogger(__name__)
MARGIN = 0.01  # of the hours: what nobody has measured
_NEWEST = 0.1  # weight of the newest step in the mean duration of a step
_TOLD_AGAIN = 0.1  # a plan that differs by more than this fraction is logged again
_FIRST_TOLD = 5  # steps after which the first plan is logged


class TimeBudget:
    """Seconds that the steps of a run take, and the last step that fits into its hours.

    planned: that step, None before it is known and without `max_hours`. checkpoint_seconds: of an evaluation with its
    checkpoint; test_seconds: of the evaluation on the test data, at the end of the run.
    """

    def __init__(self, max_hours: float | None, used: float, started: float) -> None:
        """used: seconds of the run before this command. started: `time.monotonic` at the start of the command."""
        self.max_hours = max_hours
        self.planned: int | None = None
        self.checkpoint_seconds = self.test_seconds = 0.0
        self.step_seconds = 0.0
        self._steps = 0  # measured in this command
        self._began = started - used
        self._step_began = self._checkpoint_began = time.monotonic()
        self._told = 0

    @property
    def used(self) -> float:
        """Seconds of the run so far, those before a resume included."""
        return time.monotonic() - self._began

    def start_step(self) -> None:
        """Note that a step begins now: after the start of the workers, an evaluation, a checkpoint."""
        self._step_began = time.monotonic()

    def end_step(self) -> None:
        """Count a step, which the next one follows at once. The first one of a command counts until the second ends."""
        now = time.monotonic()
        weight = 1.0 if self._steps < 2 else _NEWEST
        self.step_seconds += weight * (now - self._step_began - self.step_seconds)
        self._steps += 1
        self._step_began = now

    def start_checkpoint(self) -> None:
        """Note that a checkpoint is saved and evaluated from now on."""
        self._checkpoint_began = time.monotonic()

    def end_checkpoint(self, test_share: float | None = None) -> None:
        """Count a checkpoint with its evaluation. test_share: images of the test data, divided by those evaluated."""
        self.checkpoint_seconds = time.monotonic() - self._checkpoint_began
        if test_share is not None:
            self.test_seconds = self.checkpoint_seconds * test_share

    def plan(self, accelerator: Accelerator, step: int, most: int, saves_per_step: float) -> None:
        """Plan the last step after `step` is done; every process must call this, and the clock of the main one counts.

        most: steps of the run without a limit of hours. saves_per_step: checkpoints per step.
        """
        if self.max_hours is None:
            return
        last_step = self._fitting(step, most, saves_per_step)
        if self.planned is not None and self.planned > step and abs(last_step - self.planned) <= 1:
            last_step = self.planned  # a step is kept in reserve, so that the schedule ends as planned
        last_step = last_step if accelerator.is_main_process else 0
        self.planned = int(sum_over_processes(accelerator, torch.tensor([float(last_step)]))[0])
        if self._steps >= _FIRST_TOLD and abs(self.planned - self._told) > _TOLD_AGAIN * self._told:
            self._told = self.planned
            logger.info(
                "max_hours: %g, of which %.2f are used; a step takes %.3g s, an evaluation with its checkpoint %.3g s: "
                "the run and its schedule will end at about step %d of %d",
                self.max_hours,
                self.used / 3600,
                self.step_seconds,
                self.checkpoint_seconds,
                self.planned,
                most,
            )

    def _fitting(self, step: int, most: int, saves_per_step: float) -> int:
        """The last step that ends in time for the last evaluation, the report, which may take as long, and a step."""
        assert self.max_hours is not None
        at_the_end = 2 * self.checkpoint_seconds + self.test_seconds + self.step_seconds
        left = self.max_hours * 3600 * (1 - MARGIN) - self.used - at_the_end
        each = self.step_seconds + saves_per_step * self.checkpoint_seconds
        return max(step, min(most, step + int(left / max(each, 1e-6))))


def move_schedule(position: float, step: int, last_step: int, most: int, warmup: int) -> float:
    """The position of the schedule after the step that follows `step`. last_step: the planned one; most: the end.

    A warm-up keeps its number of steps, but takes a tenth of the run at most, as in `warmup_steps`.
    """
    if last_step - step <= 1:
        return float(most)
    if position < warmup:
        return position + max(1.0, warmup / max(1, last_step // 10))
    return position + (most - position) / (last_step - step)


def resumed_position(
    position: float, step: int, most: int, used: float, hours: tuple[float | None, float | None]
) -> float:
    """The position of the schedule at a checkpoint, for hours that may have changed: (then, now).

    With more hours, the schedule goes back to the share of them that is used; without a limit, to the step.
    """
    then, now = hours
    if now is None:
        return position if then is None else float(step)
    if then is None or now <= then:
        return position
    return min(position, max(float(step), most * min(1.0, used / (now * 3600))))
