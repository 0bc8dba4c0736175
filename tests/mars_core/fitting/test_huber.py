"""Huber loss and its censored likelihood against quadrature and finite differences."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import huber as scipy_huber
from scipy.stats import norm

from mars_core.fitting.huber import censored_huber, huber, noise_scale

R = np.array([-0.5, -0.02, -0.0011, -0.001, -0.0004, 0.0, 0.0003, 0.001, 0.002, 0.3])


@pytest.mark.parametrize("delta", [1e-3, 0.1, 10.0])
def test_value_is_scipys(delta):
    np.testing.assert_allclose(huber(R, delta).value, scipy_huber(delta, R), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("delta", [1e-3, 0.1])
def test_parabola_of_the_majorant_lies_above_and_touches(delta):
    x = np.linspace(-0.6, 0.6, 4001)
    for r in R:
        at = huber(np.array([r]), delta)
        parabola = at.value + at.slope * (x - r) + 0.5 * at.majorant * (x - r) ** 2
        assert np.all(parabola >= huber(x, delta).value - 1e-15)


def tail_by_quadrature(v, delta, scale):
    density = lambda x: np.exp(-scipy_huber(delta, x) / scale)  # noqa: E731
    far = 60 * scale / delta + 10 * delta
    total = 2 * quad(density, 0, far, points=[min(delta, far / 2)], limit=400)[0]
    if v >= far:
        return 0.0
    inside = [p for p in (-delta, 0.0, delta) if v < p < far]
    return quad(density, v, far, points=inside or None, limit=400)[0] / total


@pytest.mark.parametrize(("delta", "scale"), [(1e-3, 1e-4), (1e-3, 1e-6), (0.1, 1e-3), (1.0, 1e-2)])
def test_censored_value_is_the_log_tail(delta, scale):
    width = max(scale / delta, np.sqrt(scale))
    v = np.array([-3.0, -1.0, -0.3, 0.0, 0.2, 1.0, 3.0]) * width
    expected = [-scale * np.log(tail_by_quadrature(value, delta, scale)) for value in v]
    np.testing.assert_allclose(censored_huber(-v, delta, scale).value, expected, rtol=1e-5, atol=1e-9 * scale)


@pytest.mark.parametrize(("delta", "scale"), [(1e-3, 1e-4), (1e-3, 1e-6), (0.1, 1e-3), (1.0, 1e-2)])
def test_censored_slope_and_curvature_are_derivatives(delta, scale):
    width = max(scale / delta, np.sqrt(scale))
    r = np.array([-2.5, -1.1, -0.4, -0.05, 0.07, 0.6, 2.2]) * width
    h = 1e-5 * width
    up, down = censored_huber(r + h, delta, scale), censored_huber(r - h, delta, scale)
    at = censored_huber(r, delta, scale)
    # Differences of values carry rounding of about 1e-16 * value / h.
    np.testing.assert_allclose(at.slope, (up.value - down.value) / (2 * h), rtol=1e-4, atol=1e-7 * delta)
    np.testing.assert_allclose(at.curvature, (up.slope - down.slope) / (2 * h), rtol=1e-3, atol=1e-4 * delta / width)


def test_wide_threshold_is_the_gaussian_tobit_term():
    sigma = 0.1
    v = np.array([-0.2, -0.05, 0.0, 0.1, 0.3])
    expected = -(sigma**2) * norm.logsf(v / sigma)
    np.testing.assert_allclose(censored_huber(-v, 100.0, sigma**2).value, expected, rtol=1e-9)


def test_a_prediction_far_above_the_limit_costs_nothing_and_far_below_costs_huber():
    delta, scale = 1e-3, 1e-4
    far = censored_huber(np.array([5.0, -5.0]), delta, scale)
    assert far.value[0] < 1e-12
    assert far.slope[0] == pytest.approx(0.0, abs=1e-12)
    assert far.slope[1] == pytest.approx(-delta, rel=1e-9)
    assert np.all(np.isfinite(far.value))


@pytest.mark.parametrize("sigma", [1e-4, 0.05])
def test_noise_scale_recovers_what_was_drawn(sigma):
    rng = np.random.default_rng(0)
    delta = 1e-3
    if sigma < delta:  # noise inside the threshold: Gaussian with variance s
        r = sigma * rng.standard_normal(20000)
        assert noise_scale(r, np.ones(20000), delta) == pytest.approx(sigma**2, rel=0.05)
    else:  # far outside: Laplace with mean |r| = s / delta
        r = rng.laplace(scale=sigma, size=20000)
        assert noise_scale(r, np.ones(20000), delta) == pytest.approx(delta * sigma, rel=0.05)
