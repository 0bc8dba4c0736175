"""The learning-rate law: its derivatives, and whether a fit finds what was planted."""

import numpy as np
import pandas as pd
import pytest

from mars_core.fitting.learning_rate import DOUBT, axes_of, doubt_of, fit_learning_rates
from mars_core.laws.learning_rate import Centre, LearningRateLaw

PAIRS = [(2, 2), (2, 16), (4, 4), (8, 8), (16, 2), (16, 16)]
OWN = [*PAIRS, (2, 4), (2, 8), (4, 8), (8, 2), (16, 4), (16, 8)]
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)


def ends(loss, pairs=PAIRS, rates=RATES, seeds=(0,)):
    """Ends of runs of every pair at every rate; `loss` takes pair, log rates of both modules and seed."""
    rates = [(rate, rate) if np.isscalar(rate) else rate for rate in rates]
    return pd.DataFrame(
        {"r_me": a, "r_llm": b, "seed": seed, "D": 2048, "log_me": np.log(me), "log_llm": np.log(llm)}
        | {"value": loss((a, b), np.log(me), np.log(llm), seed)}
        for a, b in pairs
        for seed in seeds
        for me, llm in rates
    )


def planted(pair, log_rate):
    best = np.log(2e-3) - 0.15 * np.log(pair[0] / 4) - 0.3 * np.log(pair[1] / 4)
    return 0.6 + 0.01 * np.log(64 / (pair[0] * pair[1])) + 0.07 * (log_rate - best) ** 2


@pytest.mark.parametrize("axes", [("all",), ("me", "llm")])
def test_derivatives_are_those_of_finite_differences(axes):
    """Central differences of step h are off by h^2 times the third derivative, here below 1e-8."""
    law, rng = LearningRateLaw(axes, Centre(5.0, 6.0, 2048.0), ((2, 4), (0, 8))), np.random.default_rng(0)
    pairs, size = [(2, 4), (0, 8), (16, 0), (8, 8)], np.array([512.0, 2048.0, 1024.0, 4096.0])
    log_rates, phi = rng.normal(-6, 1, (4, len(axes))), rng.normal(0, 0.5, len(law.symbols))
    found = law.jacobian(phi, log_rates, pairs, size)
    for at in range(len(phi)):
        step = np.zeros_like(phi)
        step[at] = 1e-5
        up, down = (law.penalty(phi + sign * step, log_rates, pairs, size) for sign in (1, -1))
        np.testing.assert_allclose(found[:, at], (up - down) / 2e-5, rtol=1e-6, atol=1e-6)


def test_a_rate_of_a_module_without_adapter_costs_nothing():
    law = LearningRateLaw(("me", "llm"), Centre(8.0, 8.0, 2048.0))
    phi, size = np.zeros(len(law.symbols)), np.array([2048.0, 2048.0])
    low, high = (law.penalty(phi, np.array([[x, -1.0]] * 2), [(0, 8), (8, 8)], size) for x in (-3.0, 1.0))
    assert low[0] == high[0]
    assert low[1] != high[1]


def test_a_planted_law_is_found():
    """Noise of 0.2% of the loss; the slopes' 95% intervals hold the truth, and the best rates are within 10%."""
    rng = np.random.default_rng(1)
    table = ends(lambda pair, _, x, seed: planted(pair, x) + 0.001 * rng.standard_normal(), seeds=(0, 1))
    fit = fit_learning_rates(table, 0.6)
    for name, true in (("s_me", -0.15), ("s_llm", -0.3)):
        low, high = fit.interval(name)
        assert low < true < high
        assert high - low < 0.15
    for pair in PAIRS:
        true = np.log(2e-3) - 0.15 * np.log(pair[0] / 4) - 0.3 * np.log(pair[1] / 4)
        assert fit.best(pair, 2048.0)[0] == pytest.approx(true, abs=0.1)


def test_a_lopsided_valley_moves_the_best_rate_by_little():
    """The loss rises faster above the optimum than below: the law's own valley is lopsided, if otherwise than this."""
    steep = 0.6

    def lopsided(pair, _, x, seed):
        z = x - (np.log(2e-3) - 0.2 * np.log(pair[0] * pair[1] / 64))
        return 0.6 + 0.07 * 2 * (np.exp(steep * z) - 1 - steep * z) / steep**2

    fit = fit_learning_rates(ends(lopsided), 0.6)
    for pair in PAIRS:
        assert fit.best(pair, 2048.0)[0] == pytest.approx(np.log(2e-3) - 0.2 * np.log(pair[0] * pair[1] / 64), abs=0.05)
    assert fit.interval("k")[0] > 0


def test_the_intervals_hold_best_rates_that_lie_off_the_line():
    """Pairs have offsets of 0.15 of their own, in 8 fits; most best rates lie inside, of several rates tried or one."""
    inside = {"several": [], "one": []}
    for number in range(8):
        rng = np.random.default_rng(number)
        true = {
            pair: np.log(2e-3) - 0.2 * np.log(pair[0] * pair[1] / 64) + 0.15 * rng.standard_normal() for pair in OWN
        }

        def loss(pair, _, x, seed, true=true, rng=rng):
            return 0.6 + 0.07 * (x - true[pair]) ** 2 + 0.002 * rng.standard_normal()

        several, one = ends(loss, OWN[:6]), ends(loss, OWN[6:], rates=(2e-3,))
        fit = fit_learning_rates(pd.concat([several, one], ignore_index=True), 0.6)
        for at, pair in enumerate(OWN):
            low, high = fit.best_interval(pair, 2048.0)[0]
            inside["several" if at < 6 else "one"].append(low <= true[pair] <= high)
    assert 0.85 < np.mean(inside["several"]) <= 1.0
    assert np.mean(inside["one"]) > 0.8


def test_a_pair_of_one_rate_for_each_seed_is_read_across_seeds():
    """Every seed shifts all pairs by as much as a rate does: half of the pairs are above in it, half below."""
    shift, own = {0: 0.0, 1: 0.01, 2: -0.01}, dict(zip(PAIRS, (0.1, -0.1, 0.05, -0.15, 0.15, 0.1), strict=True))
    line = {(a, b): np.log(2e-3) - 0.15 * np.log(a / 4) - 0.3 * np.log(b / 4) for a, b in PAIRS}

    def loss(pair, _, x, seed):
        return planted(pair, x - own[pair]) + shift[seed]

    first = ends(loss, PAIRS[:3])
    again = [
        ends(loss, [pair], [np.exp(line[pair] + (0.35 if (seed + at) % 2 else -0.35))], [seed])
        for seed in (1, 2)
        for at, pair in enumerate(PAIRS)
    ]
    fits = [fit_learning_rates(rows, 0.6) for rows in (first, pd.concat([first, *again], ignore_index=True))]
    size, true = np.full(3, 2048.0), [line[pair] + own[pair] for pair in PAIRS[3:]]
    off = [np.abs(fit.law.best(fit.phi, PAIRS[3:], size)[:, 0] - true).max() for fit in fits]
    assert off[1] < 0.06 < off[0]
    spread = [fit.best_sd(PAIRS[3:], size) for fit in fits]
    assert (spread[1] < 0.7 * spread[0]).all()


def test_rates_of_two_modules_are_told_apart():
    grid = [(me, llm) for me in RATES[1:4] for llm in RATES[1:4]]

    def loss(pair, me, llm, seed):
        return 0.6 + 0.03 * (me - np.log(1e-3)) ** 2 + 0.09 * (llm - np.log(3e-3)) ** 2

    fit = fit_learning_rates(ends(loss, rates=grid), 0.6)
    assert fit.law.axes == ("me", "llm")
    np.testing.assert_allclose(fit.best((8, 8), 2048.0), np.log([1e-3, 3e-3]), atol=0.1)


def test_pairs_of_one_rate_say_nothing_and_do_no_harm():
    table = ends(lambda pair, _, x, seed: planted(pair, x))
    single = ends(lambda pair, _, x, seed: 9.0, pairs=[(4, 8)], rates=(2e-3,))
    together = pd.concat([table, single], ignore_index=True)
    with_it, without = (fit_learning_rates(rows, 0.6) for rows in (together, table))
    assert with_it.n_groups == without.n_groups == len(PAIRS)
    np.testing.assert_allclose(with_it.best((8, 8), 2048.0), without.best((8, 8), 2048.0), atol=0.02)


def test_one_rate_for_all_runs_is_no_law():
    assert fit_learning_rates(ends(lambda *_: 0.6, rates=(2e-3,)), 0.6) is None
    assert axes_of(np.zeros(2), np.zeros(2), [(8, 8), (4, 4)]) == ()


def test_the_size_is_not_told_by_runs_of_one_size():
    """Then the prior stays: -0.1 with a standard deviation of 0.15."""
    fit = fit_learning_rates(ends(lambda pair, _, x, seed: planted(pair, x)), 0.6)
    np.testing.assert_allclose(fit.interval("s_D"), (-0.1 - 1.96 * 0.15, -0.1 + 1.96 * 0.15), atol=1e-6)


def test_rates_that_no_pair_has_two_of_are_no_law():
    apart = pd.concat([ends(lambda *_: 0.6, pairs=[pair], rates=(rate,)) for pair, rate in zip(PAIRS, RATES)])  # noqa: B905
    assert fit_learning_rates(apart, 0.6) is None


def test_runs_that_end_a_step_apart_and_seeds_that_differ_are_compared():
    table = ends(lambda pair, _, x, seed: planted(pair, x))
    lengths = 2048 + 8 * (table.groupby(["r_me", "r_llm"]).cumcount() % 2)
    own_seeds = table.assign(seed=np.arange(len(table)))
    for rows in (table.assign(D=lengths), own_seeds):
        fit = fit_learning_rates(rows, 0.6)
        assert fit.n_groups == len(PAIRS)
        assert fit.best((4, 4), 2048.0)[0] == pytest.approx(np.log(2e-3), abs=0.1)


def test_a_rate_that_is_held_beside_one_that_varies_stays_as_it_is():
    fit = fit_learning_rates(ends(lambda pair, me, *_: planted(pair, me), rates=[(me, 1e-4) for me in RATES]), 0.6)
    assert fit.law.axes == ("me",)
    assert fit.held == {"llm": pytest.approx(np.log(1e-4))}


def test_rates_that_vary_together_keep_their_ratio():
    rates = [(rate / 10, rate) for rate in RATES]
    fit = fit_learning_rates(ends(lambda pair, _, x, seed: planted(pair, x), rates=rates), 0.6)
    assert fit.law.axes == ("all",)
    assert fit.ratio == pytest.approx(np.log(0.1))


def test_one_setting_of_two_rates_does_not_vary_because_a_module_has_no_adapter():
    me, llm = np.log([1e-5, 1e-4, 1e-5]), np.log([1e-4, 1e-4, 1e-5])  # a module without adapter has the other's rate
    assert axes_of(me, llm, [(8, 8), (0, 8), (8, 0)]) == ()


def test_a_cliff_beyond_the_valley_does_not_bend_it():
    """Runs at three times the best rate and more end at several times the loss: the valley is found as without them,
    and that they ended so high still says that the best rate is below."""
    rng = np.random.default_rng(4)

    def falls(pair, _, x, seed):
        best = np.log(2e-3) - 0.15 * np.log(pair[0] / 4) - 0.3 * np.log(pair[1] / 4)
        return planted(pair, x) + 0.002 * rng.standard_normal() + (2.0 if x - best > 1.2 else 0.0)

    table = ends(falls, rates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2))
    fit = fit_learning_rates(table, 0.6)
    assert fit.scatter < 0.01
    for pair in PAIRS:
        true = np.log(2e-3) - 0.15 * np.log(pair[0] / 4) - 0.3 * np.log(pair[1] / 4)
        assert fit.best(pair, 2048.0)[0] == pytest.approx(true, abs=0.2)


def test_far_from_the_valley_orders_of_magnitude_are_compared():
    """Near the bottom a share of the penalty; far off, what is wrong by the same factor is as far from the law."""
    level = 1.0
    assert doubt_of(np.array([0.01]), np.array([0.01]), level)[0] == pytest.approx(DOUBT * 0.01, rel=0.1)
    paid, seen = np.array([1.0, 2.0]), np.array([3.0, 6.0])
    off = (seen - paid) / doubt_of(paid, seen, level)
    assert off[0] == pytest.approx(off[1], rel=0.02)
    low = np.array([1e-3])  # said to be at the bottom, seen far above
    assert (3.0 - low[0]) / doubt_of(low, np.array([3.0]), level)[0] > 5.0
