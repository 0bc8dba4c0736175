"""Builders of planted fits and of planted calibrations."""

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


STEPS = (32, 45, 64, 91, 128, 181, 256)


def build_metrics(loss, ranks_me=(8, 16, 32, 64), ranks_llm=(8, 16, 32, 64), seeds=1, noise=0.0, rng=0):
    """Checkpoint metrics at a constant rate whose true loss is `loss(r_me, r_llm, D)`, in nats per answer token."""
    generator, rows = np.random.default_rng(rng), []
    for seed in range(seeds):
        for r_me in ranks_me:
            for r_llm in ranks_llm:
                level = noise * generator.standard_normal()
                for step in STEPS:
                    own = loss(r_me, r_llm, 8 * step) * np.exp(level + noise * generator.standard_normal())
                    row = {"r_me": r_me, "r_llm": r_llm, "seed": seed, "run_id": f"{r_me}-{r_llm}-{seed}", "step": step}
                    rows.append({**row, "unique_samples": 8 * step, "val_loss": own, "lr": 2e-3})
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def metrics_of():
    return build_metrics


@pytest.fixture
def eq1():
    """Eq. 1: loss = 3 / (r_me^0.05 r_llm^0.1 (D / 100)^0.3) + 0.8."""
    return lambda r_me, r_llm, D: 3.0 * r_me**-0.05 * r_llm**-0.1 * (D / 100) ** -0.3 + 0.8


@pytest.fixture
def status():
    return Status


@pytest.fixture
def held_out():
    return lambda mape, rivals: HeldOut("D >= 2048", 50, 10, mape, mape, 2 * mape, rivals)
