"""The standing pair against the new choice: verdicts on planted laws, against differences worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mars_core.drift import ChoiceDrift, compare_choices, excess_of
from mars_core.fitting import LawFit
from mars_core.laws import get_law
from mars_core.search.objective import objective_named

D = 4096.0


def law_p(alpha_llm: float = 0.2, spread: float = 0.0, n_draws: int = 200) -> LawFit:
    """loss = 3 / (r_llm^alpha_llm * D^0.3) + 1, its exponent alpha_llm scattered by `spread` over the draws."""
    planted = {"A": 3.0, "alpha_m": 0.0, "alpha_l": alpha_llm, "beta": 0.3, "E": 1.0}
    theta = np.array([planted[symbol] for symbol in get_law("performance").symbols])
    draws = np.tile(theta, (n_draws, 1))
    draws[:, 2] += spread * np.random.default_rng(0).standard_normal(n_draws)
    nothing = {"objective": 0.0, "delta": 1e-3, "level": 0.95, "n_points": 9, "n_censored": 0, "n_groups": 9}
    return LawFit(
        law="performance", coefficients=planted, intervals={}, draws=draws, grouped_by="row", statuses=(),
        held_out=None, start_agreement=1.0, condition_number=1.0, correlations=np.eye(5), profiles=(),
        noise_scale=0.0, **nothing,
    )  # fmt: skip


def compare(law: LawFit | None, *, standing=(8, 8), chosen=(8, 64), margin=0.0025, law_bad=None, standing_bad=None):
    return compare_choices(
        standing, chosen, law, D=D, margin=margin, objection_to_law=law_bad, objection_to_standing=standing_bad
    )


def by_hand(alpha: float) -> float:
    """exp(loss(r_llm 8) - loss(r_llm 64)) - 1."""
    return math.exp(3 * D**-0.3 * (8**-alpha - 64**-alpha)) - 1


def test_excess_is_the_relative_excess_perplexity():
    found = excess_of(law_p(), (8, 8), (8, 64), D)
    assert found.excess == pytest.approx(by_hand(0.2))
    assert found.interval == pytest.approx((by_hand(0.2), by_hand(0.2)))


def test_interval_pairs_both_predictions_draw_by_draw():
    law = law_p(spread=0.02)
    low, high = excess_of(law, (8, 8), (8, 64), D).interval
    expected = np.percentile([by_hand(alpha) for alpha in law.draws[:, 2]], [2.5, 97.5])
    assert (low, high) == pytest.approx(tuple(expected))


def test_a_metric_is_compared_by_its_ratio_and_named():
    """A letter error of 0.24 against 0.20 is a fifth more; read as losses, they would differ by exp(0.04) - 1 = 4%."""
    law, letters = law_p(), objective_named("letter_error")
    error = law.predict({"r_me": np.array([8.0, 8.0]), "r_llm": np.array([8.0, 64.0]), "D": np.array([D, D])})
    ratio = error[0] / error[1] - 1
    assert excess_of(law, (8, 8), (8, 64), D, letters).excess == pytest.approx(ratio)
    assert excess_of(law, (8, 8), (8, 64), D, letters).interval == pytest.approx((ratio, ratio))
    margin = 0.5 * (ratio + by_hand(0.2))  # between both readings
    found = compare_choices(
        (8, 8), (8, 64), law, D=D, margin=margin, objection_to_law=None, objection_to_standing=None, objective=letters
    )
    assert ("material" if ratio > margin else "immaterial") == found.verdict
    assert f"{ratio:.2%} more letter_error than (8, 64)" in found.reason


def test_material_only_if_the_interval_excludes_the_margin():
    sure, unsure = law_p(spread=0.005), law_p(spread=0.3)
    assert compare(sure).verdict == "material"
    assert compare(unsure).verdict == "uncertain"
    assert compare(sure, margin=2 * by_hand(0.2)).verdict == "immaterial"
    assert [compare(law).needs_final_run for law in (sure, unsure)] == [True, False]


def test_a_margin_inside_the_interval_is_not_surely_passed():
    law = law_p(spread=0.02)
    low, high = excess_of(law, (8, 8), (8, 64), D).interval
    assert low < by_hand(0.2) < high
    assert compare(law, margin=(low + by_hand(0.2)) / 2).verdict == "uncertain"
    assert compare(law, margin=0.99 * low).verdict == "material"


def test_a_standing_pair_that_is_predicted_better_stays():
    assert compare(law_p(), standing=(8, 64), chosen=(8, 8)).verdict == "immaterial"


def test_too_few_draws_bound_nothing():
    drift = compare(law_p(n_draws=5))
    assert drift.excess.interval is None
    assert drift.verdict == "uncertain"


def test_the_same_pair_needs_no_law():
    assert compare(None, chosen=(8, 8)).verdict == "same pair"


def test_nothing_stands_yet():
    drift = compare(law_p(), standing=None)
    assert (drift.verdict, drift.needs_final_run) == ("first", True)


def test_without_a_sound_law_nothing_is_started():
    drift = compare(law_p(), law_bad="law P has a wrong-signed exponent")
    assert (drift.verdict, drift.needs_final_run) == ("unknown", False)
    assert "wrong-signed" in drift.reason
    assert compare(None).verdict == "unknown"


def test_a_standing_adapter_that_cannot_stay_is_replaced_even_by_the_same_pair():
    drift = compare(law_p(), chosen=(8, 8), standing_bad="The base model changed")
    assert (drift.verdict, drift.needs_final_run) == ("material", True)


@pytest.mark.parametrize("drift", [compare(law_p()), compare(law_p(), standing=None), compare(law_p(n_draws=3))])
def test_findings_survive_json(drift):
    assert ChoiceDrift.from_json(json.loads(json.dumps(drift.to_json()))) == drift
