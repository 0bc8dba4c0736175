"""A metric as objective: law P of the metric, excess as a ratio, and what happens at 0."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest

from mars_core.search import MaxTrainableParameters, choose_pair
from mars_core.search.both_laws import LawSettings, Times, laws_from
from mars_core.search.choice import Choice
from mars_core.search.from_laws import choose_from_laws, objective_of
from mars_core.search.objective import PERPLEXITY_OBJECTIVE, objective_named, points_of, positive_points
from mars_core.search.score import expected_regret

METRIC = objective_named("token_error")
RANKS = (2, 4, 8, 16)
SIZES = (64, 128, 256, 512, 1024)
NO_TIMES = Times(pd.DataFrame({"module": []}), "no times in this test", "slice", "common")
SETTINGS = LawSettings((4, 4), starts=16, bootstrap=40, rule="paper")


def metrics(error):
    """Checkpoint metrics whose loss falls mostly with the vision rank, and whose error is `error(r_me, r_llm, D)`."""
    rows = [
        {
            "run_id": f"{r_me}-{r_llm}", "r_me": r_me, "r_llm": r_llm, "seed": 0, "unique_samples": size,
            "val_loss": 6.0 / r_me**0.3 / r_llm**0.05 / size**0.3 + 0.5, "val_objective": error(r_me, r_llm, size),
        }
        for r_me in RANKS for r_llm in RANKS for size in SIZES
    ]  # fmt: skip
    return pd.DataFrame(rows)


def falls_with_the_llms_rank(r_me, r_llm, size):
    return 0.9 / r_me**0.05 / r_llm**0.3 / size**0.4 + 0.02


def chosen(table, objective):
    laws = laws_from(points_of(table, objective), NO_TIMES, SETTINGS, objective)
    choose = partial(
        choose_pair, ranks_me=RANKS, ranks_llm=RANKS, D_target=4096, reference=(2, 4), objective=objective,
        trainable_parameters=lambda pair: sum(pair), constraints=[MaxTrainableParameters(10)],
    )  # fmt: skip
    return laws, choose_from_laws(laws, table, choose, lambda part: laws)


def test_the_objective_decides_which_pair_wins():
    """With 10 to share between the ranks, loss wants the vision rank and the error the LLM's. Law P is asked over all
    pairs, as there is no law C. The planted surface has no noise: the fit finds it to 0.1%."""
    table = metrics(falls_with_the_llms_rank)
    _, by_loss = chosen(table, PERPLEXITY_OBJECTIVE)
    laws, by_error = chosen(table, METRIC)
    assert (by_loss.pair, by_error.pair) == ((8, 2), (2, 8))
    assert (by_loss.objective, by_error.objective) == ("perplexity", "token_error")
    best = by_error.candidate((2, 8))
    assert best.loss == pytest.approx(falls_with_the_llms_rank(2, 8, 4096), rel=1e-3)
    assert best.perplexity is None
    assert "of token_error" in by_error.reason
    assert objective_of(laws).name == "token_error"
    assert Choice.from_json(by_error.to_json()) == by_error


def test_excess_of_a_metric_is_its_ratio():
    """Two draws over three pairs, by hand: 0.1, 0.2, 0.1 and 0.3, 0.2, 0.4."""
    draws = np.array([[0.1, 0.2, 0.1], [0.3, 0.2, 0.4]])
    assert expected_regret(draws, METRIC) == pytest.approx([0.25, 0.5, 0.5])
    loss = expected_regret(draws, PERPLEXITY_OBJECTIVE)
    assert loss == pytest.approx([np.expm1(0.1) / 2, np.expm1(0.1) / 2, np.expm1(0.2) / 2])


def test_zeros_before_the_end_are_left_out_and_told():
    table = metrics(
        lambda r_me, r_llm, size: (
            0.0 if (r_me, r_llm, size) == (2, 2, 512) else falls_with_the_llms_rank(r_me, r_llm, size)
        )
    )
    laws, choice = chosen(table, METRIC)
    assert laws["objective_notes"] == [
        "token_error is 0 at 1 of 80 checkpoints, which no power law reaches: they are left out"
    ]
    assert laws["performance"] is not None
    assert choice.pair == (2, 8)


def test_a_pair_that_is_perfect_at_the_end_is_taken_as_a_fallback():
    table = metrics(
        lambda r_me, r_llm, size: (
            0.0 if (r_me, r_llm, size) == (4, 4, 1024) else falls_with_the_llms_rank(r_me, r_llm, size)
        )
    )
    laws, choice = chosen(table, METRIC)
    assert laws["performance"] is None
    assert (choice.verdict, choice.pair, choice.decided_by) == ("fallback", (4, 4), "best observed pair")
    assert "token_error is already 0 at the largest size for (4, 4)" in choice.fallback_cause
    assert choice.candidates[0].loss == 0.0


def test_missing_values_are_left_out_and_told():
    table = metrics(lambda r_me, r_llm, size: np.nan if size == 64 else falls_with_the_llms_rank(r_me, r_llm, size))
    found = positive_points(points_of(table, METRIC), "token_error")
    assert (len(found.table), found.cause) == (64, None)
    assert found.notes == ("token_error has no value at 16 of 80 checkpoints: they are left out",)


def test_a_metric_without_any_value_is_a_fallback():
    _, choice = chosen(metrics(lambda *_: np.nan), METRIC)
    assert (choice.verdict, choice.decided_by, choice.pair) == ("fallback", "reference pair", (2, 4))


def test_stored_laws_of_earlier_versions_are_of_perplexity():
    assert objective_of({}) is PERPLEXITY_OBJECTIVE
