"""Correlations against their textbook formulas, and what is said where numbers cannot say much."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mars_core.evaluation import correlation
from mars_core.evaluation.correlation import correlate, in_words, last_scores


def points(n=16, noise=0.01, seed=0):
    random = np.random.default_rng(seed)
    perplexity = random.uniform(2.0, 4.0, n)
    return pd.DataFrame({"perplexity": perplexity, "accuracy": 1.1 - 0.2 * perplexity + random.normal(0, noise, n)})


def test_both_coefficients_by_their_definitions():
    table = points()
    x, y = table["perplexity"].to_numpy(), table["accuracy"].to_numpy()
    r = ((x - x.mean()) * (y - y.mean())).sum() / math.sqrt(((x - x.mean()) ** 2).sum() * ((y - y.mean()) ** 2).sum())
    differences = np.argsort(np.argsort(x)) - np.argsort(np.argsort(y))
    rho = 1 - 6 * (differences**2).sum() / (16 * (16**2 - 1))
    found = correlate(table)
    assert found.pearson.value == pytest.approx(r, rel=1e-12)
    assert found.spearman.value == pytest.approx(rho, rel=1e-12)
    # Fisher: artanh r +- 1.959964 / sqrt(n - 3), with seven digits of the normal quantile.
    expected = [math.tanh(math.atanh(r) + sign * 1.959964 / math.sqrt(13)) for sign in (-1, 1)]
    assert found.pearson.interval == pytest.approx(expected, abs=1e-6)
    assert found.spearman.interval[0] < rho < found.spearman.interval[1]
    assert (found.n, found.doubts) == (16, ())
    assert "Pearson r = -1.00" in in_words(found)


def test_the_interval_covers_the_truth_as_often_as_it_says(monkeypatch):
    """Normal pairs of correlation -0.6, 400 tables of 12: 95% coverage has a standard error of 1.1%."""
    monkeypatch.setattr(correlation, "DRAWN", 9)  # for Spearman's p-value, which is not looked at
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        x = random.normal(size=12)
        table = pd.DataFrame({"perplexity": x, "accuracy": -0.6 * x + 0.8 * random.normal(size=12)})
        low, high = correlate(table).pearson.interval
        hits += low < -0.6 < high
    assert 0.925 < hits / 400 < 0.975


def test_few_runs_and_ties_are_said():
    few = correlate(points(5))
    assert "only 5 runs" in few.doubts[0]
    assert few.pearson.interval[1] - few.pearson.interval[0] > 0
    three = correlate(points(3))
    assert three.pearson.interval is None
    assert three.doubts[1] == "no interval: it takes 4 runs"
    tied = points(12).assign(accuracy=[0.1, 0.2] * 6)
    assert "only 2 different accuracies among 12 runs" in correlate(tied).doubts[-1]


def test_a_perfect_line_has_a_coefficient_of_one():
    found = correlate(points(noise=0.0))
    assert found.pearson.value == pytest.approx(-1.0)
    assert (found.pearson.interval, found.spearman.interval) == (None, None)
    assert found.doubts == ("no interval for Pearson and Spearman: a coefficient of 1 or -1 has none",)
    assert "interval" not in in_words(found)


@pytest.mark.parametrize(("runs", "p_value"), [(3, 2 / 6), (4, 2 / 24), (5, 2 / 120)])
def test_runs_in_perfect_order_are_as_likely_as_two_of_all_orders(runs, p_value):
    found = correlate(points(runs, noise=0.0))
    assert found.spearman.value == pytest.approx(-1.0)
    assert found.spearman.p_value == pytest.approx(p_value, rel=1e-12)
    assert f"p = {p_value:.3f}" in in_words(found)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1, 2, 3, 4, 5, 6], [6, 4, 5, 2, 3, 1]),
        ([1, 2, 3, 4, 5, 6, 7], [2, 1, 4, 3, 7, 5, 6]),
        ([1, 2, 2, 3, 4, 4], [0.3, 0.3, 0.2, 0.2, 0.2, 0.1]),
    ],
    ids=["six", "seven", "with ties"],
)
def test_spearmans_p_value_counts_all_orders(x, y):
    """Against rho of every order, by numpy's correlation of average ranks; 1e-9: roundings of equal ones."""
    ranks = [pd.Series(values).rank().to_numpy() for values in (x, y)]
    observed = abs(np.corrcoef(*ranks)[0, 1])
    orders = list(itertools.permutations(ranks[1]))
    as_strong = sum(abs(np.corrcoef(ranks[0], order)[0, 1]) >= observed - 1e-9 for order in orders)
    found = correlate(pd.DataFrame({"perplexity": x, "accuracy": y}))
    assert found.spearman.p_value == pytest.approx(as_strong / len(orders), rel=1e-12)


@pytest.mark.parametrize("runs", [16, 150])
def test_spearmans_p_value_of_more_runs_is_near_students_t(runs):
    """9,999 drawn orders know a p near 0.05 to 0.002 (one standard error); t itself is off by as much for 16 runs."""
    random = np.random.default_rng(3)
    x = random.normal(size=runs)
    table = pd.DataFrame({"perplexity": x, "accuracy": random.normal(size=runs) - 2 * x / math.sqrt(runs)})
    found = correlate(table)
    rho = found.spearman.value
    t = abs(rho) * math.sqrt((runs - 2) / (1 - rho**2))
    assert found.spearman.p_value == pytest.approx(2 * stats.t.sf(t, runs - 2), abs=0.008)
    assert correlate(table) == found


def test_seeds_of_one_pair_are_said_to_depend_on_each_other():
    table = points(12).assign(r_me=[4, 8, 16] * 4, r_llm=8, seed=[0, 1, 2, 3] * 3)
    assert correlate(table).doubts == (
        "12 runs are of 3 rank pairs: runs of one pair are not independent, so intervals are too narrow and "
        "p-values too small",
    )
    assert correlate(table.assign(r_llm=range(12))).doubts == ()


def test_accuracy_that_does_not_vary_has_no_correlation():
    found = correlate(points().assign(accuracy=0.0))
    assert (found.pearson, found.spearman) == (None, None)
    assert "accuracy is 0 in every run" in in_words(found)
    assert json.loads(json.dumps(found.to_json()))["n"] == 16


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"perplexity": [1.0, 2.0, 3.0]}), "no column accuracy: got perplexity"),
        (points(4).assign(accuracy=[0.1, 0.2, None, "x"]), "at least 3 runs with perplexity and accuracy, got 2"),
    ],
)
def test_tables_that_cannot_be_used(table, message):
    with pytest.raises(ValueError, match=message):
        correlate(table)


def test_last_scores_are_those_of_each_runs_last_step():
    rows = [
        (name, r, 8, 0, step, 4.0 / step, accuracy)
        for name, r, accuracy in (("b", 16, 0.2), ("a", 8, 0.1))
        for step in (4, 1, 2)
    ]
    columns = ["run_id", "r_me", "r_llm", "seed", "step", "val_perplexity", "val_accuracy"]
    found = last_scores(pd.DataFrame(rows, columns=columns))
    assert found[["r_me", "perplexity", "accuracy"]].to_numpy().tolist() == [[8, 1.0, 0.1], [16, 1.0, 0.2]]
