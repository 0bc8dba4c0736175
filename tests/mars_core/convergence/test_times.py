import json

import numpy as np
import pandas as pd
import pytest

from mars_core.convergence import (
    LossLevels,
    NoConvergenceTimes,
    convergence_times,
    freeze_levels,
    lower_middle,
    reference_pair,
)

BATCH = 8
STEPS = tuple(round(8 * 2 ** (i / 2)) for i in range(11))  # 8, 11, 16, ..., 256
G_ME, G_LLM = -0.06, -0.24


@pytest.fixture
def metrics(metrics_of, grid, log_linear_loss):
    return metrics_of(grid(), log_linear_loss(G_ME, G_LLM))


def test_lower_middle_is_16_for_the_papers_grid():
    assert lower_middle([8, 16, 32, 64]) == 16
    assert lower_middle([64, 8, 8, 16, 0]) == 16
    assert reference_pair([(0, 4), (2, 4), (8, 16), (4, 0), (4, 8)]) == (4, 8)


def test_columns_and_sizes(metrics):
    times = convergence_times(metrics)
    named = ["module", "r", "D", "S_D", "steps", "censored", "run_id", "r_me", "r_llm", "seed"]
    assert set(named) <= set(times.columns)
    # from the fifth checkpoint, 32 = 4 x 8 steps, on
    assert sorted(set(times.S_D)) == [s for s in STEPS if s >= 32]
    assert (times.D == BATCH * times.S_D).all()


def test_common_level_gives_the_closed_form_time(metrics, grid):
    """With loss 3 - b ln(s/tau) and level the 0.9 quantile of floors, t = tau * S_D * quantile_0.1-weighted tau."""
    times = convergence_times(metrics)
    taus = np.array([m**G_ME * n**G_LLM for m, n in [(float(m), float(n)) for m, n in grid()]])
    # floor = 3 - b ln(S_D) + b ln(tau): its quantile is that of ln(tau)
    level_tau = np.exp(np.quantile(np.log(taus), 0.9))
    tau = times.r_me.astype(float) ** G_ME * times.r_llm.astype(float) ** G_LLM
    expected = tau * times.S_D / level_tau
    seen = ~times.censored
    np.testing.assert_allclose(times.steps[seen], expected[seen], rtol=1e-9)
    assert (expected[times.censored] > max(STEPS)).all()
    assert (times.steps[times.censored] == max(STEPS)).all()
    assert times.censored.any()


def test_slices_recover_the_planted_exponents(metrics):
    times = convergence_times(metrics)
    for module, gamma in (("me", G_ME), ("llm", G_LLM)):
        rows = times[(times.module == module) & (times.S_D == 64) & ~times.censored]
        slope = np.polyfit(np.log(rows.r.astype(float)), np.log(rows.steps), 1)[0]
        assert slope == pytest.approx(gamma, abs=1e-9)


def test_reference_is_balanced_by_construction(metrics):
    """Whatever the data: the reference run stands in both slices, so t_me(ref) = t_llm(ref) at every size."""
    rng = np.random.default_rng(0)
    noisy = metrics.assign(val_loss=metrics.val_loss * np.exp(0.02 * rng.standard_normal(len(metrics))))
    times = convergence_times(noisy)
    at_reference = times[(times.r_me == 4) & (times.r_llm == 4)]
    by_module = at_reference.pivot(index="D", columns="module", values="steps")
    assert len(by_module) > 3
    pd.testing.assert_series_equal(by_module.me, by_module.llm, check_names=False)


def test_slices_hold_the_other_rank_at_the_reference(metrics):
    times = convergence_times(metrics, reference=(8, 2))
    assert set(times[times.module == "me"].r_llm) == {2}
    assert set(times[times.module == "llm"].r_me) == {8}
    assert set(times[times.module == "llm"].r) == {2, 4, 8, 16}


def test_frozen_levels_do_not_move_when_pairs_are_added_pruned_or_diverge(metrics, metrics_of, log_linear_loss):
    levels = freeze_levels(metrics)
    first = convergence_times(metrics, levels=levels)
    bad = metrics_of([(4, 32)], lambda *_: np.linspace(9, 8, len(STEPS)))
    diverged = metrics_of([(4, 64)], lambda m, n, s: np.where(s > 60, np.nan, log_linear_loss(G_ME, G_LLM)(m, n, s)))
    pruned = metrics[~((metrics.r_me == 16) & (metrics.step > 64))]
    later = convergence_times(pd.concat([pruned, bad, diverged]), levels=levels)
    same_runs = later[later.run_id.isin(first[first.r_me != 16].run_id)].reset_index(drop=True)
    pd.testing.assert_frame_equal(same_runs, first[first.r_me != 16].reset_index(drop=True))
    assert later[later.run_id == "4-32-0"].censored.all()
    lost = later[later.run_id == "4-64-0"]
    assert not lost[lost.S_D <= 45].censored.any()
    assert lost[lost.S_D == 256].censored.all()


def test_levels_computed_again_do_move_and_are_returned(metrics, metrics_of):
    bad = metrics_of([(4, 32)], lambda m, n, s: 3.1 - 0.1 * np.log(s))
    again = convergence_times(pd.concat([metrics, bad]))
    assert again.attrs["levels"] != convergence_times(metrics).attrs["levels"]
    stored = json.loads(json.dumps(convergence_times(metrics).attrs["levels"]))
    assert LossLevels.from_json(stored) == freeze_levels(metrics)


def test_rank_zero_takes_no_part_in_slices(metrics, metrics_of):
    alone = metrics_of([(4, 0), (0, 4)], lambda *_: np.linspace(9, 8, len(STEPS)))
    pd.testing.assert_frame_equal(convergence_times(pd.concat([metrics, alone])), convergence_times(metrics))


def test_isolated_signal_has_one_level_per_module(metrics_of):
    pairs = [(r, 0) for r in (2, 4, 8, 16)] + [(0, r) for r in (2, 4, 8, 16)]

    def loss(r_me, r_llm, s):
        return 5.0 - 0.1 * np.log(s * r_me**0.2) if r_llm == 0 else 3.0 - 0.3 * np.log(s * r_llm**0.4)

    times = convergence_times(metrics_of(pairs, loss), signal="isolated")
    for module, gamma in (("me", -0.2), ("llm", -0.4)):
        rows = times[(times.module == module) & ~times.censored & (times.S_D == 64)]
        assert np.polyfit(np.log(rows.r.astype(float)), np.log(rows.steps), 1)[0] == pytest.approx(gamma, abs=1e-9)


def test_own_level_of_a_curve_that_ends_early(metrics_of):
    """A loss that falls linearly in log s to step 16 and is flat from there: floor + eps of the drop is
    reached at s1 * (16/s1)^(1 - eps) = 8 * 2^0.95 for every size whose last doubling is flat."""
    flat_from = metrics_of([(4, 4)], lambda m, n, s: 3.0 - np.log(np.minimum(s, 16.0)))
    times = convergence_times(flat_from, level="own", eps=0.05)
    assert not times.censored.any()
    np.testing.assert_allclose(times.steps, 8 * 2**0.95)
    exact_minimum = convergence_times(flat_from, level="own", eps=0.0)
    np.testing.assert_allclose(exact_minimum.steps, 16.0)


def test_own_level_with_eps_0_says_nothing_while_the_loss_falls(metrics):
    times = convergence_times(metrics, level="own", eps=0.0)
    assert times.censored.all()
    assert (times.steps == times.S_D).all()


@pytest.mark.parametrize("eps", [0.02, 0.05, 0.3])
def test_own_level_is_censored_exactly_when_the_last_doubling_still_brought_more_than_eps(eps, metrics_of):
    """loss = 2 + s^-p, so the last doubling brings S^-p (2^p - 1) of a drop s1^-p - S^-p."""
    p = 1.5
    times = convergence_times(metrics_of([(4, 4)], lambda m, n, s: 2.0 + s**-p), level="own", eps=eps)
    S = times.S_D.to_numpy()
    # the half-way point of an odd checkpoint lies between checkpoints, where the curve is interpolated
    on_grid = np.isin(S, [32, 64, 128, 256])
    brought = ((S / 2) ** -p - S**-p) / (8.0**-p - S**-p)
    np.testing.assert_array_equal(times.censored.to_numpy()[on_grid], (brought > eps)[on_grid])
    assert (times.steps[~times.censored] <= times.S_D[~times.censored] / 2).all()


def test_a_run_at_the_level_from_the_start_is_not_given_a_time(metrics_of, log_linear_loss):
    """A module that converges 8 times sooner than the slowest tenth is past the level of S_D = 32 at step 8."""
    pairs = [(4, r) for r in (2, 4, 8, 16)]
    times = convergence_times(metrics_of(pairs, log_linear_loss(0.0, -1.0)), reference=(4, 4))
    assert times.S_D.min() > 32
    seen = times[(times.module == "llm") & ~times.censored]
    product = seen.steps * seen.r / seen.S_D
    np.testing.assert_allclose(product, product.iloc[0], rtol=1e-9)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda m: m.drop(columns="val_loss"), "missing column.*val_loss"),
        (lambda m: pd.concat([m, m.head(2)]), "one row per"),
        (lambda m: m.assign(r_me=np.arange(len(m)) + 1), "different"),
        (lambda m: m[~((m.r_me == 4) & (m.r_llm == 4))], r"no run at the reference pair.*\(4, 4\)"),
        (lambda m: m.assign(r_me=0), "no pair with both ranks positive"),
    ],
)
def test_mistakes_are_named(metrics, broken, says):
    with pytest.raises(ValueError, match=says):
        convergence_times(broken(metrics))


def test_runs_with_one_checkpoint_each_give_no_times_and_the_setting_is_named(metrics):
    with pytest.raises(NoConvergenceTimes, match=r"evaluated at two steps or more.*calibration\.smallest_size"):
        convergence_times(metrics[metrics.step == metrics.step.max()], reference=(4, 4))


def test_unknown_names_are_refused(metrics):
    with pytest.raises(ValueError, match="unknown signal"):
        convergence_times(metrics, signal="slices")
    with pytest.raises(ValueError, match="unknown level"):
        convergence_times(metrics, level="commun")
    with pytest.raises(ValueError, match="eps"):
        convergence_times(metrics, level="own", eps=1.5)
    with pytest.raises(ValueError, match="quantile"):
        convergence_times(metrics, quantile=0.0)
    with pytest.raises(ValueError, match="isolated signal needs"):
        convergence_times(metrics, signal="isolated")


def test_too_few_checkpoints_is_a_domain_error(metrics):
    with pytest.raises(NoConvergenceTimes, match="at least 5 checkpoints"):
        convergence_times(metrics[metrics.step <= 23])
