"""Builders of planted fits, so that the search is tested without fitting."""

import numpy as np
import pandas as pd
import pytest

from mars_core.fitting import HeldOut, LawFit, Status
from mars_core.laws import get_law


def build_fit(law: str, coefficients: dict[str, float], spread=0.0, n_draws=200, seed=0, statuses=()) -> LawFit:
    """A fit whose draws scatter around the planted coefficients: scales by a relative `spread`, exponents by it
    in absolute terms. `spread` may be one number or one per symbol."""
    form = get_law(law)
    theta = np.array([coefficients[symbol] for symbol in form.symbols])
    spreads = np.array([spread.get(s, 0.0) if isinstance(spread, dict) else spread for s in form.symbols])
    noise = np.random.default_rng(seed).standard_normal((n_draws, theta.size)) * spreads
    draws = np.where(form.log_mask(), theta * np.exp(noise), theta + noise)
    return LawFit(
        law=law,
        coefficients=dict(coefficients),
        intervals={s: tuple(np.percentile(draws[:, i], [2.5, 97.5])) for i, s in enumerate(form.symbols)},
        draws=draws,
        objective=0.0,
        delta=1e-3,
        level=0.95,
        n_points=100,
        n_censored=0,
        n_groups=16,
        grouped_by="run_id",
        statuses=tuple(statuses),
        held_out=None,
        start_agreement=1.0,
        condition_number=1.0,
        correlations=np.eye(theta.size),
        profiles=(),
        noise_scale=0.0,
    )


@pytest.fixture
def fit_of():
    return build_fit


@pytest.fixture
def law_c():
    """Law C with planted exponents; both modules equal by default, so that the balance curve is r_me = r_llm."""

    def build(gamma=-0.3, k=100.0, delta=0.5, E=0.0, spread=0.0, **kwargs):
        return build_fit("convergence", {"k": k, "gamma": gamma, "delta": delta, "E": E}, spread, **kwargs)

    return build


@pytest.fixture
def law_p():
    def build(alpha_m=0.05, alpha_l=0.2, A=3.0, beta=0.3, E=1.0, spread=0.0, **kwargs):
        planted = {"A": A, "alpha_m": alpha_m, "alpha_l": alpha_l, "beta": beta, "E": E}
        return build_fit("performance", planted, spread, **kwargs)

    return build


@pytest.fixture
def bent_law_p():
    """A law P with its optimum inside the grid: over-fitting grows with both ranks."""

    def build(spread=0.0, **kwargs):
        planted = {"A": 3.0, "alpha_m": 0.3, "alpha_l": 0.3, "beta": 0.3, "E": 1.0, "C": 0.02, "mu": 0.5, "nu": 0.3}
        return build_fit("performance_overfit", planted, spread, **kwargs)

    return build


@pytest.fixture
def status():
    return Status


@pytest.fixture
def held_out():
    return lambda mape, rivals: HeldOut("D >= 2048", 50, 10, mape, mape, 2 * mape, rivals)


@pytest.fixture
def setting():
    """Arguments of choose_pair for ranks 8..64 with an unambiguous best observed pair, (32, 8)."""
    ranks = (8, 16, 32, 64)
    rows = [
        {"r_me": m, "r_llm": n, "D": D, "loss": 2.0 + 0.01 * abs(m - 32) / 32 + 0.01 * n / 8 + 100 / D}
        for m in ranks
        for n in ranks
        for D in (512, 1024, 2048)
    ]
    return {
        "ranks_me": ranks,
        "ranks_llm": ranks,
        "D_target": 16384,
        "trainable_parameters": lambda pair: 100_000 * pair[0] + 300_000 * pair[1],
        "observed": pd.DataFrame(rows),
        "reference": (16, 16),
    }
