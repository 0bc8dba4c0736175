"""`fit_law` end to end on planted tables: recovery, determinism, result format and callers' mistakes."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mars_core.fitting import LawFit, fit_law
from mars_core.laws import get_law

THETA_P = np.array([8.0, 0.05, 0.15, 0.3, 1.0])
THETA_C = np.array([2.0, -0.25, 0.8, 10.0])


SIZES = 2.0 ** np.arange(7, 14)


def performance_table(noise=0.0, seeds=2, sizes=SIZES, seed=0):
    rows = [(a, b, D, s) for a in (8, 16, 32, 64) for b in (8, 16, 32, 64) for D in sizes for s in range(seeds)]
    table = pd.DataFrame(rows, columns=["r_me", "r_llm", "D", "seed"])
    table["run_id"] = table.r_me.astype(str) + "-" + table.r_llm.astype(str) + "-" + table.seed.astype(str)
    rng = np.random.default_rng(seed)
    clean = get_law("performance").predict(THETA_P, table)
    table["loss"] = clean * np.exp(noise * rng.standard_normal(len(table)))
    return table


def convergence_table(noise=0.0, seed=0):
    table = pd.DataFrame(
        [(r, D, s) for r in (4, 8, 16, 32) for D in 2.0 ** np.arange(7, 13) for s in range(3)],
        columns=["r", "D", "seed"],
    )
    rng = np.random.default_rng(seed)
    clean = get_law("convergence").predict(THETA_C, table)
    table["steps"] = clean * np.exp(noise * rng.standard_normal(len(table)))
    return table


def test_noiseless_performance_surface_is_recovered():
    fit = fit_law("performance", performance_table(), n_bootstrap=2, hold_out=False)
    # Without noise the objective is flat to rounding near the optimum: 1e-5 is far below any use.
    np.testing.assert_allclose(fit.theta, THETA_P, rtol=1e-5)
    assert fit.objective < 1e-12


def test_noiseless_convergence_surface_is_recovered():
    fit = fit_law("convergence", convergence_table(), n_bootstrap=2, hold_out=False)
    np.testing.assert_allclose(fit.theta, THETA_C, rtol=1e-4)


def test_noisy_surface_is_covered_by_the_intervals_and_flags_nothing():
    fit = fit_law("performance", performance_table(noise=0.01))
    assert fit.statuses == ()
    for symbol, true in zip(get_law("performance").symbols, THETA_P, strict=True):
        low, high = fit.intervals[symbol]
        # Twice the 95% interval: a miss of that size has a chance of about 1e-4.
        assert low - (high - low) / 2 < true < high + (high - low) / 2


def test_same_seed_same_fit():
    table = performance_table(noise=0.01)
    first, second = (fit_law("performance", table, seed=3, n_starts=8, n_bootstrap=10) for _ in range(2))
    assert first.to_json() == second.to_json()


def test_result_shapes_and_predictions():
    table = performance_table(noise=0.01)
    fit = fit_law("performance", table, n_starts=8, n_bootstrap=50, hold_out=False)
    assert fit.draws.shape == (50, 5)
    assert fit.grouped_by == "run_id"
    assert fit.n_groups == 32
    X = {"r_me": [8, 16], "r_llm": [8, 16], "D": [1e4, 1e4]}
    assert fit.predict(X).shape == (2,)
    assert fit.predict_draws(X).shape == (50, 2)
    low, high = fit.predict_interval(X)
    assert np.all((low < fit.predict(X)) & (fit.predict(X) < high))


def test_json_round_trip_is_exact_and_has_no_nan():
    fit = fit_law("convergence", convergence_table(noise=0.05), n_starts=8, n_bootstrap=20)
    text = json.dumps(fit.to_json(), allow_nan=False)
    again = LawFit.from_json(json.loads(text))
    assert again.to_json() == fit.to_json()
    np.testing.assert_array_equal(again.draws, fit.draws)
    assert {"law", "coefficients", "intervals", "objective", "n_points", "statuses", "held_out"} <= set(fit.to_json())


def test_from_json_names_what_is_missing():
    with pytest.raises(ValueError, match="Field required"):
        LawFit.from_json({"law": "performance"})


def test_a_mapping_of_arrays_is_as_good_as_a_frame():
    table = convergence_table(noise=0.05)
    as_mapping = {column: table[column].to_numpy() for column in table}
    one, other = (fit_law("convergence", points, n_starts=8, n_bootstrap=10) for points in (as_mapping, table))
    assert one.to_json() == other.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="loss"), "missing: \\['loss'\\]"),
        (lambda t: t.assign(loss=t.loss.where(t.index != 7, -1.0)), "positive.*-1 in row 8"),
        (lambda t: t.assign(loss=t.loss.where(t.index != 7)), "not a finite number in row 8"),
        (lambda t: t.assign(D=t.D.where(t.index != 3, np.inf)), "not a finite number in row 4"),
        (lambda t: t[t.r_me == 8].reset_index(), "at least 2 distinct values of r_me.*got 1 \\(8\\).*widen"),
        (lambda t: pd.concat([t, t.iloc[[4]]], ignore_index=True), "rows 5 and 225 have the same key"),
        (lambda t: t.drop(columns=["seed", "run_id"]), "same key.*add a run_id or seed"),
        (lambda t: t.iloc[[0, 30, 90, 200]].reset_index(), "5 coefficients, got 4 observed points"),
        (lambda t: t.assign(loss="high"), "loss must hold numbers"),
        (lambda t: t.assign(censored="maybe"), "true or false, got 'maybe'"),
    ],
)
def test_a_bad_table_gets_one_message_with_rows_and_remedy(change, message):
    with pytest.raises(ValueError, match=message):
        fit_law("performance", change(performance_table(noise=0.01)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delta": 0.0}, "delta must be positive"),
        ({"level": 1.5}, "level must lie between"),
        ({"n_starts": 0}, "at least 1 start"),
        ({"group": "fleet"}, "missing: \\['fleet'\\]"),
        ({"hold_out": np.zeros(3, bool)}, "one boolean per row"),
        ({"hold_out": np.zeros(224, bool)}, "leave rows to fit and rows to test"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fit_law("performance", performance_table(noise=0.01), **settings)


def test_a_fit_with_numbers_that_are_not_finite_is_read_again():
    points = {"D": [64.0, 128.0, 256.0, 512.0], "loss": [3.0, 2.5, 2.2, 2.0]}
    fit = fit_law("performance_no_rank", points, n_bootstrap=2)
    broken = replace(fit, intervals={**fit.intervals, "E": (0.0, math.inf)})
    again = LawFit.from_json(json.loads(json.dumps(broken.to_json())))
    assert math.isnan(again.intervals["E"][1])
    assert again.coefficients == fit.coefficients
