"""The table of runs as points: which tables are refused, and what of a usable one becomes a run."""

import numpy as np
import pandas as pd
import pytest

from mars_core.search.objective import PERPLEXITY_OBJECTIVE, objective_named
from mars_core.search.observed import seeds_per_pair
from mars_core.search.points import read_points

ERROR = objective_named("token_error")


@pytest.fixture
def runs(metrics_of, eq1):
    return metrics_of(eq1, (8, 16), (8, 16), seeds=2, noise=0.01)


def read(metrics):
    return read_points(metrics, PERPLEXITY_OBJECTIVE).table


def with_cell(metrics, column, value):
    """The third row with another cell."""
    changed = metrics.astype({column: object})
    changed.loc[2, column] = value
    return changed


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("step", np.inf, "step is inf in row 3 .1 of 56 rows.* whole number"),
        ("step", 1.5, "step is 1.5"),
        ("step", 10**30, "whole number of optimizer steps"),
        ("unique_samples", np.inf, "unique_samples is inf"),
        ("unique_samples", 1e300, "at most 1e.12"),
        ("lr", np.inf, "lr is inf .* finite learning rate of 0 or more"),
        ("lr", -1e-5, "lr is -1e-05"),
        ("lr", "2e-5", "lr is '2e-5'"),
        ("r_me", "8", "r_me is '8' .* whole rank"),
        ("r_llm", 8.5, "r_llm is 8.5"),
        ("r_llm", -8, "r_llm is -8"),
        ("seed", np.nan, "seed is nan"),
        ("seed", "a", "seed is 'a'"),
        ("val_loss", "low", "val_loss is 'low'"),
    ],
)
def test_an_unusable_cell_is_named(runs, column, value, says):
    with pytest.raises(ValueError, match=says):
        read(with_cell(runs, column, value))


def test_numbers_in_a_column_of_objects_are_numbers(runs):
    as_objects = runs.astype({"r_me": object, "val_loss": object, "seed": "Int64", "step": float})
    pd.testing.assert_frame_equal(read(as_objects), read(runs))


def test_an_unknown_learning_rate_is_no_mistake(runs):
    assert read(with_cell(runs, "lr", np.nan))["lr"].isna().sum() == 1


def test_rank_0_is_measured_and_left_out_of_the_power_laws(runs):
    points = read_points(with_cell(runs, "r_me", 0), PERPLEXITY_OBJECTIVE)
    assert len(points.runs) == len(runs)
    assert len(points.table) == len(runs) - 1


@pytest.mark.parametrize("loss", [0.0, -0.1, 100.5, 800.0])
def test_a_loss_that_is_no_mean_in_nats_is_refused_with_its_pair_and_step(runs, loss):
    with pytest.raises(ValueError, match=rf"val_loss is {loss:g} for pair \(8, 8\) at step 64.*nats per answer token"):
        read(with_cell(runs, "val_loss", loss))


def test_the_loss_is_free_where_a_metric_is_the_objective(runs):
    points = read_points(with_cell(runs, "val_loss", 0.0).assign(val_objective=0.5), ERROR)
    assert len(points.table) == len(runs)


def test_a_run_that_diverged_may_have_had_any_loss(runs):
    losses = runs["val_loss"].mask(runs.index == 2, 800.0).mask(runs.index == 3)
    points = read_points(runs.assign(val_loss=losses), PERPLEXITY_OBJECTIVE)
    assert list(points.diverged) == [(8, 8)]


def test_rows_that_repeat_every_step_are_runs(runs):
    bare = read(runs.drop(columns=["seed", "run_id"]))
    assert bare["run_id"].nunique() == 8
    assert seeds_per_pair(bare) == 2.0


def test_copies_of_a_run_are_no_second_seed(runs):
    one = runs[runs["seed"] == 0].drop(columns=["seed", "run_id"])
    with pytest.raises(ValueError, match=r"28 rows are copies, first pair \(8, 8\) at step 32"):
        read(pd.concat([one, one]))


def test_a_step_that_is_there_twice_is_no_second_seed(runs):
    bare = runs.drop(columns=["seed", "run_id"])
    with pytest.raises(ValueError, match=r"1 rows lack a run .* pair \(8, 8\) at step 45"):
        read(bare.drop(index=1))


def test_a_run_id_stands_in_every_row_or_in_none(runs):
    with pytest.raises(ValueError, match="run_id is missing in 1 of 56 rows"):
        read(with_cell(runs, "run_id", None))
    assert len(read(runs.assign(run_id=None))) == len(runs)


def test_runs_per_size_are_no_seeds_of_each_other(runs):
    """Each seed has a run for every size: two repeats of a training, not eight."""
    per_size = pd.concat(
        [
            runs[runs["step"] <= end].assign(run_id=lambda rows, end=end: rows["run_id"] + f"-{end}")
            for end in (64, 256)
        ],
        ignore_index=True,
    )
    assert seeds_per_pair(read(per_size)) == 2.0
    assert seeds_per_pair(read(per_size.drop(columns="seed"))) == 2.0


def test_runs_without_a_seed_are_counted_at_the_largest_size(runs):
    assert seeds_per_pair(read(runs.drop(columns="seed"))) == 2.0
    uneven = runs[(runs["r_me"] == 8) | (runs["seed"] == 0)]
    assert seeds_per_pair(read(uneven)) == 1.5
