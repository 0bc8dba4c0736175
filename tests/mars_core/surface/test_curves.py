"""Which checkpoints count, and at which size: against schedules integrated by hand."""

import numpy as np
import pytest

from mars_core.surface import after_warmup, read_curves


def test_without_rates_sizes_are_what_was_seen_within_a_factor_of_four(table_of, eq1):
    curves = read_curves(table_of(eq1))
    assert curves.largest == 2048
    assert curves.size.min() == pytest.approx(512 / 2048)
    np.testing.assert_allclose(curves.size, curves.seen)
    assert not curves.annealed


def test_a_constant_rate_leaves_sizes_as_they_are(table_of, eq1):
    curves = read_curves(table_of(eq1, lr=lambda step: 2e-3))
    np.testing.assert_allclose(curves.size, curves.seen, rtol=1e-12)
    assert not curves.annealed


def test_the_warmup_is_left_out(table_of, eq1, schedule):
    table = table_of(eq1, lr=schedule)
    assert after_warmup(table)["step"].min() == 32  # the warm-up ends at 26; the next checkpoint has the highest rate
    assert after_warmup(table.drop(columns="lr"))["step"].min() == 8


def test_effective_size_is_the_integral_of_the_rate(table_of, eq1, schedule):
    """Trapezoids over the checkpoints miss the step-by-step sum by their spacing: 7% at these steps."""
    curves = read_curves(table_of(eq1, ranks_me=(8,), ranks_llm=(8,), lr=schedule))
    steps = np.array([45, 64, 91, 128, 181, 256])
    summed = np.cumsum([schedule(step) for step in range(1, 257)])
    np.testing.assert_allclose(curves.size, summed[steps - 1] / summed[-1], rtol=0.07)
    assert curves.annealed
    assert curves.heat[-1] == pytest.approx(0.0, abs=1e-6)
    assert curves.heat[0] == pytest.approx(schedule(45) / schedule(32), rel=1e-6)  # over the highest recorded rate


def test_order_of_the_rows_does_not_matter(table_of, eq1, schedule):
    table = table_of(eq1, seeds=2, noise=0.01, lr=schedule)
    one, other = read_curves(table), read_curves(table.sample(frac=1.0, random_state=3))
    np.testing.assert_array_equal(one.value, other.value)
    np.testing.assert_array_equal(one.common.effect, other.common.effect)


def test_runs_share_a_checkpoint_within_a_seed_alone(table_of, eq1):
    curves = read_curves(table_of(eq1, seeds=3))
    n_checkpoints = len(np.unique(curves.size))
    assert int(curves.common.effect.max()) + 1 == 3 * n_checkpoints
