"""The champion's pair against the new choice: verdicts on choices with known differences, and on planted runs."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from mars_core.drift import ChoiceDrift, compare_choices, excess_of
from mars_core.search import Candidate, Choice, Question, Source, choose_from, read_points
from mars_core.search.fitted_laws import FittedLaws
from mars_core.search.objective import PERPLEXITY_OBJECTIVE

STANDING, CHOSEN = (8, 8), (8, 64)
NO_LAWS = FittedLaws(
    performance=None,
    convergence={"me": None, "llm": None},
    causes={"performance": "beta ended on its lower bound", "me": "too few points", "llm": "too few points"},
)


def candidate(pair, excess, interval, loss=1.2) -> Candidate:
    return Candidate(
        pair, loss, (loss - 0.1, loss + 0.1), float(np.exp(loss)), 0.0, 1000, Source("all pairs"),
        excess=excess, excess_interval=interval, probability_best=0.5,
    )  # fmt: skip


def choice_of(excess=0.02, interval=(0.01, 0.03), margin=0.0025, objective="perplexity") -> Choice:
    """(8, 64) was chosen, and (8, 8) stands `excess` above it."""
    return Choice(
        pair=CHOSEN, verdict="best", reason="r", decided_by="posterior", fallback_cause=None, preferred_over=None,
        rule="mars", D_target=4096.0, margin=margin,
        candidates=(candidate(CHOSEN, 0.0, (0.0, 0.0), 1.1), candidate(STANDING, excess, interval)),
        dropped=(), balance_curve=(), n_undefined=0, diagnostics={}, objective=objective,
    )  # fmt: skip


def test_the_excess_is_the_posterior_s():
    found = excess_of(choice_of(), STANDING)
    assert (found.excess, found.interval, found.D) == (0.02, (0.01, 0.03), 4096.0)
    assert (found.standing_loss, found.chosen_loss) == (1.2, 1.1)


def test_material_only_if_the_interval_excludes_the_margin():
    sure, unsure = choice_of(interval=(0.003, 0.04)), choice_of(interval=(-0.01, 0.05))
    assert compare_choices(STANDING, sure).verdict == "material"
    assert compare_choices(STANDING, unsure).verdict == "uncertain"
    assert compare_choices(STANDING, choice_of(margin=0.025)).verdict == "immaterial"
    assert [compare_choices(STANDING, choice).needs_final_run for choice in (sure, unsure)] == [True, False]


def test_a_standing_pair_that_is_predicted_better_stays():
    drift = compare_choices(STANDING, choice_of(excess=-0.001, interval=(-0.004, 0.002)))
    assert drift.verdict == "immaterial"
    assert "0.10% less perplexity than (8, 64)" in drift.reason


def test_a_metric_is_named():
    drift = compare_choices(STANDING, choice_of(excess=0.2, interval=(0.1, 0.3), objective="letter_error"))
    assert "20.00% more letter_error than (8, 64)" in drift.reason


def test_the_same_pair_needs_no_comparison():
    assert compare_choices(CHOSEN, choice_of()).verdict == "same pair"


def test_nothing_stands_yet():
    drift = compare_choices(None, choice_of())
    assert (drift.verdict, drift.needs_final_run) == ("first", True)


def test_a_pair_that_was_not_compared_starts_nothing():
    drift = compare_choices((2, 2), choice_of())
    assert (drift.verdict, drift.needs_final_run) == ("unknown", False)
    assert "not among the pairs that were compared" in drift.reason


def test_algorithm_1_states_no_difference_so_nothing_is_started():
    paper = dataclasses.replace(choice_of(excess=None, interval=None), verdict="paper", decided_by="Algorithm 1")
    drift = compare_choices(STANDING, paper)
    assert (drift.verdict, drift.needs_final_run) == ("unknown", False)
    assert "Algorithm 1 states no difference" in drift.reason


def test_a_standing_adapter_that_cannot_stay_is_replaced_even_by_the_same_pair():
    drift = compare_choices(CHOSEN, choice_of(), objection_to_standing="The base model changed")
    assert (drift.verdict, drift.needs_final_run) == ("material", True)


def planted_runs(spread: float) -> pd.DataFrame:
    """Three seeds of nine pairs; a higher LLM rank lowers the loss by `spread` per doubling."""
    rng = np.random.default_rng(0)
    rows = []
    for r_me in (8, 16, 32):
        for r_llm in (8, 16, 32):
            for seed in range(3):
                luck = 0.002 * rng.standard_normal()
                for step in (8, 16, 32, 64, 128, 256, 512):
                    loss = 1.0 + 6.0 * (8.0 * step) ** -0.4 - spread * np.log2(r_llm / 8) + luck
                    rows.append((r_me, r_llm, seed, step, 8 * step, loss + 0.0005 * rng.standard_normal()))
    return pd.DataFrame(rows, columns=["r_me", "r_llm", "seed", "step", "unique_samples", "val_loss"])


@pytest.mark.parametrize(("spread", "verdict"), [(0.05, "material"), (0.0, "same pair")])
def test_clear_runs_decide_where_no_law_could_be_fitted(spread, verdict):
    """A night used to make no final run whenever law P was disqualified, however clear its measurements were."""
    points = read_points(planted_runs(spread), PERPLEXITY_OBJECTIVE)
    choice = choose_from(NO_LAWS, points, Question(8192, lambda pair: 10 * pair[0] + 30 * pair[1], (8, 8)))
    drift = compare_choices((8, 8), choice)
    assert (drift.verdict, drift.needs_final_run) == (verdict, verdict == "material")
    if verdict == "material":
        assert drift.excess.excess == pytest.approx(np.exp(0.1) - 1, rel=0.15)


@pytest.mark.parametrize(
    "drift",
    [compare_choices(STANDING, choice_of()), compare_choices(None, choice_of()), compare_choices((2, 2), choice_of())],
)
def test_findings_survive_json(drift):
    assert ChoiceDrift.from_json(json.loads(json.dumps(drift.to_json()))) == drift


def test_findings_of_an_earlier_version_open():
    """Written when law P compared the pairs, from too few bootstrap draws for an interval."""
    excess = {"D": 4096.0, "standing_loss": 1.2, "chosen_loss": 1.1, "excess": 0.105, "interval": None}
    stored = {
        "standing": [8, 8], "chosen": [8, 64], "verdict": "uncertain", "reason": "Under the new laws ...",
        "margin": 0.0025, "excess": excess,
    }  # fmt: skip
    drift = ChoiceDrift.from_json(stored)
    assert (drift.standing, drift.excess.excess, drift.excess.interval) == ((8, 8), 0.105, None)
    assert drift.to_json() == stored
