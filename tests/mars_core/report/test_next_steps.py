"""What the report recommends, and what that costs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mars_core.report.next_steps import next_steps
from mars_core.report.study_results import read_results


@pytest.fixture
def steps(data):
    """The steps of the planted study with changes to its choice and its data."""

    def of(choice=None, **changes):
        made = dataclasses.replace(data, choice={**data.choice, **(choice or {})}, **changes)
        return next_steps(made, read_results(made))

    return of


def test_a_choice_that_is_sure_is_to_be_stopped_at(steps, data):
    first, *others = steps({"verdict": "best", "regret": 0.0012, "regret_bound": 0.004})
    assert first.what == "Stop here: another pair is expected to gain 0.12% of perplexity, at most 0.40% (95%)."
    assert not first.cost
    assert not any(step.what.startswith("More seeds") for step in others)


def test_more_seeds_are_recommended_where_they_would_tell_and_cost_their_share(steps, data):
    """Calibration took 312.4 s with one seed: four more times that for five."""
    first = steps({"verdict": "cannot tell", "seeds_needed": 5})[0]
    assert "5 of each pair" in first.what
    assert first.cost == "about 20 min 50 s more of calibration"


def test_where_nothing_would_tell_the_guess_is_to_be_used_and_why_is_said(steps):
    """Beside a verdict that nothing is told, nothing says that the study is done."""
    first = steps({"verdict": "cannot tell", "seeds_needed": None, "regret": 0.0007, "regret_bound": 0.004})[0]
    assert first.what == (
        "Use this adapter as it is: even a dozen seeds of each pair would not tell which is best; another pair is "
        "expected to gain 0.07% of perplexity, at most 0.40% (95%)."
    )


def test_the_guess_comes_last_where_more_seeds_would_tell(steps):
    last = steps({"verdict": "cannot tell", "seeds_needed": 5})[-1]
    assert last.what.startswith("Use this adapter as it is; another pair is expected to gain")


def test_more_data_gains_what_law_p_says(steps, data):
    (more,) = [step for step in steps() if step.what.startswith("More data")]
    law, (r_me, r_llm), size = data.laws["performance"]["coefficients"], data.choice["pair"], data.choice["D_target"]

    def loss(D):
        ranks = r_me ** law["alpha_m"] * r_llm ** law["alpha_l"]
        return law["A"] / (ranks * D ** law["beta"]) + law["E"]

    assert f"takes {1 - np.exp(loss(2 * size) - loss(size)):.1%} off the perplexity" in more.what
    assert more.cost == "the final run then takes about 2 min 03 s"  # twice 61.5 s


def test_another_rate_is_offered_where_one_was_tried(steps, data):
    assert any(step.what.startswith("Another learning rate") for step in steps())
    several = data.metrics.assign(peak_lr_me=1e-3, peak_lr_llm=np.where(data.metrics["r_me"] > 2, 1e-3, 2e-3))
    assert not any(step.what.startswith("Another learning rate") for step in steps(metrics=several))


def test_a_stage_that_is_missing_comes_first(data):
    def first(**changes):
        made = dataclasses.replace(data, **changes)
        (step,) = next_steps(made, read_results(made))
        return step.what

    assert "mars calibrate" in first(metrics=data.metrics.iloc[:0], choice=None)
    assert "mars run" in first(choice=None)
    assert "mars finetune" in first(finals=[])
    assert "mars evaluate" in first(evaluation=None)
