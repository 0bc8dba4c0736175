"""Warnings of the runs themselves: each from runs that are made to have just that fault, and none from sound ones."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from mars_core.search.run_signs import run_notes, run_warnings

STEPS = (8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256)
HORIZON = 256


def cosine(step: float) -> float:
    """Share of the peak rate at a step: warm-up of 10%, then a cosine to zero."""
    warm = 0.1 * HORIZON
    return step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (HORIZON - warm)))


def run(pair, loss, *, rate=1e-4, name="", clipped=0.1, norms=(0.5, 0.5)):
    """Checkpoints of a run; loss: of the summed learning rate up to a step, as a share of the whole sum."""
    summed = np.cumsum([cosine(step) for step in range(1, HORIZON + 1)])
    rows = [
        {
            "r_me": pair[0], "r_llm": pair[1], "run_id": f"{pair}{rate}{name}", "step": step, "lr": rate * cosine(step),
            "val_loss": loss(summed[step - 1] / summed[-1]), "train_loss": loss(summed[step - 1] / summed[-1]),
            "peak_lr_me": rate, "peak_lr_llm": rate, "clipped_share": clipped,
            "grad_norm_me": norms[0] if pair[0] else 0.0, "grad_norm_llm": norms[1] if pair[1] else 0.0,
        }
        for step in STEPS
    ]  # fmt: skip
    return pd.DataFrame(rows)


def table(*runs):
    return pd.concat(runs, ignore_index=True)


def learns(done):
    """A run that slows down: two thirds of what can be learnt are, in a quarter of the schedule."""
    return 1.5 + 4.5 * math.exp(-4.0 * done)


def begins(done):
    """A run of a hundredth of the rate: what the other learns in a hundredth of its schedule, and on like that."""
    return 6.01 - 0.43 * done


def test_sound_runs_say_nothing():
    assert run_warnings(table(run((2, 2), learns), run((4, 4), learns), run((0, 4), learns))) == []


def test_a_rate_that_is_far_too_low_is_said_with_what_to_do():
    (warning,) = run_warnings(table(run((2, 2), begins, rate=1e-5), run((4, 4), lambda d: begins(d) + 0.1, rate=1e-5)))
    assert "the best run, (2, 2), fell from 6.01 to 5.58 and did not slow down" in warning
    assert "the learning rate 1e-05 is probably far too low" in warning
    assert "calibration.learning_rates: auto" in warning


def test_a_loss_that_hardly_moved_is_said():
    (warning,) = run_warnings(table(run((2, 2), lambda done: 6.0 - 0.1 * done)))
    assert warning.startswith("the training loss of the best run, (2, 2), hardly moved, from 6 to 5.9")


def test_where_several_rates_were_calibrated_a_low_one_is_no_fault():
    assert run_warnings(table(run((2, 2), begins, rate=1e-5), run((2, 2), learns, rate=1e-3))) == []


@pytest.mark.parametrize(("shares", "expected"), [((0.6, 0.7, 0.1), 1), ((0.6, 0.1, 0.1), 0), ((np.nan,) * 3, 0)])
def test_gradients_that_are_mostly_clipped_are_said(shares, expected):
    runs = [run((2, 2), learns, name=str(number), clipped=share) for number, share in enumerate(shares)]
    assert run_warnings(table(*runs)) == []
    found = run_notes(table(*runs))
    assert len(found) == expected
    assert all("clipped in more than half of the steps in 2 of 3 runs" in warning for warning in found)


def test_adapters_that_never_moved_are_said_and_a_module_without_adapters_is_not():
    assert run_warnings(table(run((0, 4), learns), run((4, 0), learns))) == []
    (warning,) = run_warnings(table(run((2, 2), learns, norms=(0.0, 0.5)), run((4, 4), learns), run((0, 4), learns)))
    assert "the adapters of the vision encoder had no gradient at any checkpoint in 1 of 2 runs" in warning
