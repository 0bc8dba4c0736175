"""Forms compete on held-out sizes and ranks; Eq. 1 stays unless a bending form is clearly better."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from mars_core.fitting import choose_form
from mars_core.fitting.choose import _under_common_rules
from mars_core.laws import get_law

RANKS = (4, 8, 16, 64)


def table_of(law, theta, noise=0.003, seed=0):
    rows = [(a, b, D, 0) for a in RANKS for b in RANKS for D in 2.0 ** np.arange(6, 12)]
    table = pd.DataFrame(rows, columns=["r_me", "r_llm", "D", "seed"])
    noise_of = np.random.default_rng(seed).standard_normal(len(table))
    return table.assign(loss=get_law(law).predict(theta, table) * np.exp(noise * noise_of))


EQ1 = [8.0, 0.05, 0.15, 0.3, 1.0]
PLANTED = {
    "performance": EQ1,
    "performance_imbalance": [*EQ1, 0.02, 0.01],
    "performance_overfit": [*EQ1, 0.02, 0.4, 0.05],
}


@cache
def chosen_for(law):
    """The choice on data of a form, made once; to be left as it is."""
    return choose_form(table_of(law, PLANTED[law]))


@pytest.mark.parametrize("law", list(PLANTED))
def test_the_form_that_made_the_data_is_chosen(law):
    choice = chosen_for(law)
    assert choice.law == law
    assert choice.beats_trivial
    assert choice.scores[0].score <= choice.scores[-1].score
    assert law in choice.reason


@pytest.mark.slow
def test_eq_1_survives_chance():
    tables = [table_of("performance", EQ1, noise=0.01, seed=seed) for seed in range(4)]
    kept = [choose_form(table, baselines=()).law == "performance" for table in tables]  # baselines are never chosen
    # Each rival needs 2 standard errors: one lucky win among 4 tables may happen, two hardly.
    assert sum(kept) >= 3


def test_rank_without_effect_does_not_beat_the_trivial_forms_by_much():
    choice = choose_form(table_of("performance_no_rank", [5.0, 0.3, 1.0]))
    scores = {score.law: score.score for score in choice.scores}
    assert scores["performance_no_rank"] < 1.1 * scores[choice.law]


def test_result_is_json_with_every_form_and_its_errors():
    data = chosen_for("performance").to_json()
    assert {"law", "scores", "runner_up", "lead", "beats_trivial", "skipped", "reason"} == set(data)
    assert {score["law"] for score in data["scores"]} >= {"performance", "performance_no_floor", "log_linear"}
    assert set(data["scores"][0]["errors"]) == {"largest size", "largest ranks"}


def test_forms_that_cannot_be_fitted_are_skipped_with_a_reason():
    table = table_of("performance", EQ1)
    few = table[(table.r_me <= 16) & (table.r_llm <= 8) & (table.D <= 128) & (table.seed == 0)].reset_index(drop=True)
    with pytest.raises(ValueError, match="add sizes or ranks"):
        choose_form(few)


def test_forms_are_compared_under_the_rules_they_share():
    """Ranks 4 and 8 only: without the largest rank nothing is left to fit a rank on, while the forms without ranks
    could still be fitted. Their easier rule must not enter their score."""
    table = table_of("performance", EQ1)
    two = table[table.r_me.isin((4, 8)) & table.r_llm.isin((4, 8))].reset_index(drop=True)
    choice = choose_form(two)
    assert {tuple(score.errors) for score in choice.scores} == {("largest size",)}
    assert all(score.score == pytest.approx(score.errors["largest size"]) for score in choice.scores)
    assert "on the held-out largest size," in choice.reason


def test_a_form_that_shares_no_rule_is_left_out():
    errors = {"a": {"x": 1, "y": 2}, "b": {"y": 3, "z": 4}, "c": {"z": 5}, "d": {"y": 6}}
    assert _under_common_rules(errors) == {"a": {"y": 2}, "b": {"y": 3}, "d": {"y": 6}}


def test_no_form_is_a_callers_mistake():
    with pytest.raises(ValueError, match="at least one form"):
        choose_form(table_of("performance", EQ1), forms=())
