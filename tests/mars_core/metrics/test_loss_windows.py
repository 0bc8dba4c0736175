"""Windows of the training loss, against means taken step by step."""

import numpy as np
import pandas as pd
import pytest

from mars_core.metrics.loss_windows import windowed, with_window

LOSSES = np.random.default_rng(0).uniform(1, 3, 12)
LOGGED = [2, 3, 5, 8, 12]
SCORED = {3: 10.0, 8: 20.0, 12: 30.0}


@pytest.fixture
def points():
    rows = []
    for run, shift in (("a", 0.0), ("b", 1.0)):
        for before, step in zip([0, *LOGGED], LOGGED, strict=False):
            mean = LOSSES[before:step].mean() + shift
            rows.append({"run_id": run, "step": step, "train_loss": mean, "score": SCORED.get(step, np.nan)})
    return pd.DataFrame(rows)


def test_interval_is_the_mean_since_the_last_score(points):
    found = with_window(points, "interval")
    expected = [LOSSES[a:b].mean() for a, b in ((0, 3), (3, 8), (8, 12))]
    np.testing.assert_allclose(found.loss, [*expected, *(np.array(expected) + 1)])
    assert found.score.tolist() == [10, 20, 30] * 2


def test_cumulative_is_the_mean_since_the_start(points):
    found = with_window(points, "cumulative")
    expected = [LOSSES[:b].mean() for b in (3, 8, 12)]
    np.testing.assert_allclose(found.loss, [*expected, *(np.array(expected) + 1)])


def test_interval_means_stay_as_they_are():
    steps, means = np.array([2.0, 5.0]), np.array([3.0, 1.0])
    np.testing.assert_array_equal(windowed(steps, means, "interval"), means)
    np.testing.assert_allclose(windowed(steps, means, "cumulative"), [3.0, (2 * 3 + 3 * 1) / 5])


def test_mistakes_are_named(points):
    with pytest.raises(ValueError, match="unknown window 'last'"):
        with_window(points, "last")
    with pytest.raises(ValueError, match="missing: \\['score'\\]"):
        with_window(points.drop(columns="score"), "interval")
    with pytest.raises(ValueError, match="add a run_id column"):
        with_window(points.drop(columns="run_id"), "interval")
