"""Posterior differences and level on surfaces whose truth is known."""

from functools import cache

import numpy as np
import pytest

from mars_core.surface import fit_level, fit_surface, read_curves, without_differences


def differences(surface, D, pair=(64, 64)):
    value = surface.differences(D)
    return value - value[:, [surface.pairs.index(pair)]]


@pytest.fixture(scope="module")
def of_eq_1(table_of, eq1, schedule):
    """Curves of Eq. 1 with noise of 0.2%, under a schedule or without, and their surface; fitted once."""

    @cache
    def fitted(scheduled):
        curves = read_curves(table_of(eq1, noise=0.002, lr=schedule if scheduled else None))
        return curves, fit_surface(curves, curves.pairs)

    return fitted


@pytest.mark.parametrize("scheduled", [False, True])
def test_eq_1_is_followed_where_it_holds(of_eq_1, eq1, scheduled):
    """Noise of 0.2%: the spread of 0.24 nats at 2,048 samples is found within 10%; that of 0.13 at 16,384 within 60%,
    since the late checkpoints alone leave the exponent open (the interval says so)."""
    _, surface = of_eq_1(scheduled=scheduled)
    for D, within in ((2048, 0.1), (16384, 0.6)):
        true = eq1(8, 8, D) - eq1(64, 64, D)
        found = differences(surface, D)[:, surface.pairs.index((8, 8))]
        assert found.mean() == pytest.approx(true, rel=within)
        assert np.percentile(found, 2.5) < true < np.percentile(found, 97.5)


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_fast_start_that_is_over_does_not_turn_the_order(table_of, schedule, scheduled):
    """Seen in real runs: low ranks lag behind at first, by far more than they lose in the end, and the lag dies out
    faster than any power of the size that the rest follows. Read as a power law it would go on and turn the order."""

    def loss(r_me, r_llm, D):
        low = 1.0 - np.log(r_llm / 8) / np.log(8)
        return 0.5 + 0.6 * (D / 256) ** -0.4 + low * (0.08 + 0.7 * (D / 256) ** -3.0)

    curves = read_curves(table_of(loss, noise=0.005, lr=schedule if scheduled else None))
    surface = fit_surface(curves, curves.pairs)
    at_twice = differences(surface, 4096)[:, surface.pairs.index((64, 8))]
    assert np.mean(at_twice > 0.0) > 0.9
    low, high = np.percentile(at_twice, [2.5, 97.5])
    assert low < 0.08 < high


def test_no_effect_is_not_made_one(table_of):
    """The largest of eight differences of means over three seeds, each off by 0.3% of about 1.4, would show 0.0087."""
    curves = read_curves(table_of(lambda a, b, D: 1.0 + (D / 256) ** -0.4, noise=0.003, seeds=3))
    surface = fit_surface(curves, curves.pairs)
    assert np.abs(differences(surface, 2048).mean(axis=0)).max() < 0.0065


def test_an_unmeasured_pair_is_less_certain_than_its_neighbours(table_of, eq1):
    table = table_of(eq1, noise=0.003)
    curves = read_curves(table[(table["r_me"] != 64) | (table["r_llm"] != 64)])
    pairs = [*curves.pairs, (64, 64)]
    spread = differences(fit_surface(curves, pairs), 2048, (8, 8)).std(axis=0)
    assert spread[pairs.index((64, 64))] > spread[pairs.index((32, 32))]


def test_level_of_a_power_law_with_a_floor(of_eq_1, eq1):
    curves, surface = of_eq_1(scheduled=False)
    level = fit_level(curves, np.log(without_differences(curves, surface)), 2000)
    for D in (2048, 16384, 157712):
        true = np.mean([eq1(*pair, D) for pair in curves.pairs])
        low, high = np.percentile(np.exp(level.at(D)), [2.5, 97.5])
        assert low < true < high
    assert np.ptp(np.percentile(level.at(157712), [2.5, 97.5])) > np.ptp(np.percentile(level.at(16384), [2.5, 97.5]))


@pytest.mark.parametrize("sigma", [0.0002, 0.001])
def test_runs_that_differ_far_more_than_their_checkpoints_make_no_one_sure(table_of, sigma):
    """Without a rank effect, three seeds whose runs end 2% apart on smooth curves: 0 lies inside the intervals."""
    table, rng = table_of(lambda a, b, D: 1.0 + (D / 256) ** -0.4, seeds=3), np.random.default_rng(5)
    level = {run: 0.02 * rng.standard_normal() for run in table["run_id"].unique()}
    own = np.array([level[run] for run in table["run_id"]]) + sigma * rng.standard_normal(len(table))
    curves = read_curves(table.assign(value=table["value"] + own))
    low, high = np.percentile(differences(fit_surface(curves, curves.pairs), 2048, (8, 8)), [2.5, 97.5], axis=0)
    assert np.mean((low <= 1e-9) & (high >= -1e-9)) > 0.8


def test_a_factor_on_a_metric_changes_nothing(table_of):
    """The value of a metric is its logarithm: a factor adds a constant to it, which is nobody's difference."""
    table = table_of(lambda a, b, D: 1.0 + 0.01 * np.log(a * b), noise=0.01)
    logs = table.assign(value=np.log(table["value"]))
    moved = logs.assign(value=logs["value"] + np.log(0.3))
    one, other = (fit_surface(c, c.pairs) for c in (read_curves(t, level=1.0) for t in (logs, moved)))
    np.testing.assert_allclose(one.differences(2048), other.differences(2048), atol=1e-6)
