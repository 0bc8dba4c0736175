import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import brentq

from mars_core.search.balance import balance_curve, balance_log_rank, steps_to_converge

exponent = st.floats(-1.5, -0.05)
scale = st.floats(1.0, 1e3)
growth = st.floats(0.2, 1.5)


@given(scale, exponent, growth, scale, exponent, growth, st.sampled_from([8, 16, 32, 64]))
def test_solves_the_balance_condition(k_v, g_v, d_v, k_l, g_l, d_l, r_llm):
    """Oracle: a root finder on t_me(r) = t_llm."""
    D, E_me, E_llm = 4096.0, 3.0, 5.0
    me, llm = np.array([k_v, g_v, d_v, E_me]), np.array([k_l, g_l, d_l, E_llm])
    log_rank = float(balance_log_rank(me, llm, r_llm, D))
    assume(np.isfinite(log_rank) and abs(log_rank) < 100)
    t_llm = float(steps_to_converge(llm, r_llm, D))
    log_time = lambda x: np.log(k_v) + g_v * x + d_v * np.log(D) - np.log(t_llm - E_me)  # noqa: E731
    assert log_rank == pytest.approx(brentq(log_time, -200, 200), abs=1e-6)


def test_a_negative_bracket_is_undefined_and_named(law_c):
    slow_floor = law_c(E=1e6)
    curve = balance_curve(slow_floor, law_c(), (8, 16), 1024.0)
    assert [point.r_me for point in curve] == [None, None]
    assert all("complex" in point.problem for point in curve)
    assert all(point.share_undefined == 1.0 and point.interval is None for point in curve)


def test_a_flat_encoder_is_not_finite(law_c):
    (point,) = balance_curve(law_c(gamma=0.0), law_c(), (8,), 1024.0)
    assert point.r_me is None
    assert "not finite" in point.problem
    (far,) = balance_curve(law_c(gamma=-1e-5, k=200.0), law_c(), (8,), 1024.0)
    assert far.r_me is None
    assert "not finite" in far.problem


def test_units_of_D_change_k_but_not_the_balance_rank(law_c):
    me, llm = law_c(gamma=-0.5, delta=0.6), law_c(gamma=-0.3, delta=0.4)
    thousand = 1000.0
    me_k = law_c(gamma=-0.5, delta=0.6, k=100.0 * thousand**0.6)
    llm_k = law_c(gamma=-0.3, delta=0.4, k=100.0 * thousand**0.4)
    for r_llm in (8, 64):
        (one,) = balance_curve(me, llm, (r_llm,), 8000.0)
        (other,) = balance_curve(me_k, llm_k, (r_llm,), 8.0)
        assert one.r_me == pytest.approx(other.r_me)


def test_slices_with_weak_rank_dependence_leave_the_grid(law_c):
    """The measured exponents, -0.06 (vision) and -0.24 (LLM), with times equal at the reference:
    r_me = ref (r_llm / ref)^4, so one step of r_llm on the grid is four steps of r_me."""
    ref, D = 16, 2048.0
    me = law_c(gamma=-0.06, k=100.0 * ref**0.06)
    llm = law_c(gamma=-0.24, k=100.0 * ref**0.24)
    for point in balance_curve(me, llm, (8, 16, 32, 64), D):
        assert point.r_me == pytest.approx(ref * (point.r_llm / ref) ** 4)


def test_interval_carries_the_bootstrap_through(law_c):
    """With k and delta known exactly, ln r_me = (gamma_llm / gamma_me) ln r_llm: its quantiles are known."""
    n = 4000
    me, llm = law_c(gamma=-0.3), law_c(gamma=-0.3, spread={"gamma": 0.02}, n_draws=n)
    me_draws = law_c(gamma=-0.3, n_draws=n)
    (point,) = balance_curve(me_draws, llm, (32,), 1024.0)
    half = 1.959964 * 0.02 / 0.3 * np.log(32)
    # 4000 draws: the 2.5% quantile is uncertain by about 3% of the half-width
    assert np.log(point.interval[0] / 32) == pytest.approx(-half, rel=0.1)
    assert np.log(point.interval[1] / 32) == pytest.approx(half, rel=0.1)
    assert point.share_undefined == 0.0
    assert balance_curve(me, llm, (32,), 1024.0)[0].r_me == pytest.approx(32)


def test_share_undefined_counts_draws_with_a_negative_bracket(law_c):
    """t_llm - E_me > 0 exactly when the draw of E_me is below t_llm; E_me is log-normal around t_llm."""
    t_llm = float(steps_to_converge(law_c().theta, 16, 1024.0))
    me = law_c(E=t_llm * 0.999, spread={"E": 0.5}, n_draws=4000)
    (point,) = balance_curve(me, law_c(n_draws=4000), (16,), 1024.0)
    # half of 4000 draws: standard error 0.8%
    assert point.share_undefined == pytest.approx(0.5, abs=0.03)


@given(st.floats(0.01, 0.3))
def test_error_grows_as_one_over_gamma(step):
    """d ln r_me / d ln t = 1 / gamma_v: the same 1% error in time moves the rank by 1%/|gamma_v|."""
    theta = np.array([100.0, -step, 0.5, 0.0])
    slower = theta * [1.01, 1, 1, 1]
    moved = balance_log_rank(slower, theta, 16, 1024.0) - balance_log_rank(theta, theta, 16, 1024.0)
    assert float(moved) == pytest.approx(np.log(1.01) / step)


def test_other_laws_are_refused(law_p, law_c):
    with pytest.raises(ValueError, match="needs a fit of law C"):
        balance_curve(law_p(), law_c(), (8,), 1024.0)
