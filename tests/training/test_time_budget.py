"""Hours of a run: the steps that fit, and the schedule that ends with them."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mask2former_dinov3.training import time_budget
from mask2former_dinov3.training.rehearsal import seconds_of_all
from mask2former_dinov3.training.time_budget import TimeBudget, move_schedule, resumed_position


@pytest.mark.parametrize("slower", [1.0, 1.5, 0.7])
def test_time_budget__ends_run_and_schedule_within_the_hours(
    slower: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps of a second whose speed changes on the way, an evaluation of 30 s every 100 steps, half an hour in all."""
    caplog.set_level(logging.INFO)
    now = [5.0]
    monkeypatch.setattr(time_budget, "time", SimpleNamespace(monotonic=lambda: now[0]))
    accelerator, most, budget = Accelerator(cpu=True), 20_000, TimeBudget(0.5, 60.0, now[0])
    now[0] += 40  # reading the data
    budget.checkpoint_seconds = 50.0  # as the rehearsal expects
    position, step = 0.0, 0
    rates: list[float] = []
    budget.start_step()
    while position < most and step < (budget.planned or most):
        now[0] += 1.0 if step < 500 else slower
        position = move_schedule(position, step, budget.planned or most, most, warmup=20)
        step += 1
        rates.append(1 - position / most)
        budget.end_step()
        budget.plan(accelerator, step, most, 1 / 100)
        if step % 100 == 0:
            budget.start_checkpoint()
            now[0] += 30
            budget.end_checkpoint(0.5)
            budget.plan(accelerator, step, most, 1 / 100)
            budget.start_step()
    assert 0.9 * 1800 < budget.used + 30 + 15 < 1800  # with the last evaluation and the test data
    assert position == most
    falls = -torch.tensor(rates).diff()
    assert bool((falls >= 0).all())
    assert float(falls[100:].max() / falls[100:].median()) < 2  # no jumps where the plan changes
    assert budget.test_seconds == 15.0
    assert "max_hours: 0.5, of which 0.03 are used; a step takes 1 s, an evaluation with its checkpoint 50 s" in (
        caplog.text
    )
    AcceleratorState._reset_state(reset_partial_state=True)


def test_seconds_of_all__takes_a_part_for_each_image_and_a_part_for_its_pixels() -> None:
    pixels = np.array([100, 400, 1_000, 100])
    seconds = 2.0 + 0.01 * pixels
    assert seconds_of_all(pixels, (2, 0), (float(seconds[2]), float(seconds[0]))) == pytest.approx(seconds.sum())
    assert seconds_of_all(np.full(5, 64), (0, 0), (3.0, 2.0)) == 10.0  # the first one pays for the start
    assert seconds_of_all(pixels, (2, 0), (1.0, 2.0)) == 8.0  # a large image is never cheaper


def test_move_schedule__is_one_step_without_a_plan_and_shortens_a_warm_up() -> None:
    assert move_schedule(3.0, 3, 100, 100, 10) == 4.0
    assert move_schedule(40.0, 40, 100, 100, 10) == pytest.approx(41.0)
    assert move_schedule(40.0, 40, 52, 100, 10) == 45.0
    assert move_schedule(0.0, 0, 20, 1000, 100) == 50.0  # a tenth of 20 steps
    assert move_schedule(97.3, 60, 61, 100, 10) == 100.0


def test_resumed_position__goes_back_for_more_hours_only() -> None:
    hour = 3600.0
    assert resumed_position(1000.0, 70, 1000, hour, (1.0, 2.0)) == 500.0
    assert resumed_position(1000.0, 700, 1000, hour, (1.0, 2.0)) == 700.0  # its steps are done
    assert resumed_position(300.0, 70, 1000, hour, (2.0, 1.5)) == 300.0
    assert resumed_position(300.0, 70, 1000, hour, (2.0, None)) == 70.0
    assert resumed_position(69.0, 70, 1000, hour, (None, None)) == 69.0  # a step was skipped, in fp16
    assert resumed_position(70.0, 70, 1000, hour, (None, 2.0)) == 70.0
