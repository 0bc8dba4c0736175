"""Correlations against their textbook formulas, and what is said where numbers cannot say much."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from mars_core.scoring.correlation import correlate, in_words, last_scores


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


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Normal pairs of correlation -0.6, 1000 tables of 12: 95% coverage has a standard error of 0.7%."""
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        x = random.normal(size=12)
        table = pd.DataFrame({"perplexity": x, "accuracy": -0.6 * x + 0.8 * random.normal(size=12)})
        low, high = correlate(table).pearson.interval
        hits += low < -0.6 < high
    assert 0.93 < hits / 1000 < 0.97


def test_few_runs_and_ties_are_said():
    few = correlate(points(5))
    assert "only 5 runs" in few.doubts[0]
    assert few.pearson.interval[1] - few.pearson.interval[0] > 0
    assert correlate(points(3)).pearson.interval is None
    tied = points(12).assign(accuracy=[0.1, 0.2] * 6)
    assert "only 2 different accuracies among 12 runs" in correlate(tied).doubts[-1]


def test_a_perfect_line_has_a_coefficient_of_one():
    found = correlate(points(noise=0.0))
    assert found.pearson.value == pytest.approx(-1.0)
    assert math.isfinite(found.pearson.interval[0])


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
