"""Every law against closed forms, finite differences and its own bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mars_core.fitting.starts import projected_starts
from mars_core.laws import LAWS, describe, get_law

GRID = {
    "r_me": np.array([8.0, 16.0, 32.0, 64.0, 8.0, 64.0]),
    "r_llm": np.array([8.0, 64.0, 16.0, 8.0, 32.0, 64.0]),
    "r": np.array([2.0, 4.0, 8.0, 16.0, 32.0, 64.0]),
    "D": np.array([128.0, 512.0, 2048.0, 256.0, 1024.0, 4096.0]),
    "N": np.array([1e6, 3e7, 2e8, 1e9, 7e9, 5e8]),
    "D_pretrain": np.array([1e8, 1e9, 2e10, 1e10, 1e11, 2e9]),
    "D_SFT": np.array([1e8, 3e8, 1e9, 5e9, 2e9, 8e9]),
    "nli": np.array([48.0, 52.0, 60.0, 55.0, 75.0, 66.0]),
    "commonsense": np.array([40.0, 45.0, 55.0, 61.0, 70.0, 52.0]),
    "reasoning": np.array([35.0, 44.0, 50.0, 65.0, 72.0, 58.0]),
    "loss": np.array([0.4, 0.7, 1.0, 1.5, 2.2, 3.0]),
}
THETA = {
    "performance": [8.0, 0.05, 0.15, 0.3, 1.0],
    "convergence": [2.0, -0.25, 0.8, 10.0],
    "chinchilla": [482.0, 2085.0, 1.817, 0.348, 0.366],
    "performance_imbalance": [8.0, 0.05, 0.15, 0.3, 1.0, 0.02, 0.01],
    "performance_overfit": [8.0, 0.05, 0.15, 0.3, 1.0, 0.01, 0.3, 0.1],
    "performance_no_floor": [3.0, 0.02, 0.05, 0.1],
    "performance_no_rank": [8.0, 0.3, 1.0],
    "log_linear": [8.0, 0.1],
    "sft-scratch": [80.0, 90.0, 110.0, 60.0, 0.12, 0.11, 0.09],
    "sft-pretrained": [1.1079, 3.0952, 0.2073, 0.4841, 0.8895, 1.0045, 20.0, 99.9, 0.05, 0.12],
    "loss-to-score": [80.0, 4.64, 1.75, 1.95],
    "sft-joint": [0.2, 0.9, 0.1, 0.6, 0.95, 1.0, 120.0, 0.06],
    "sft-nonlinear": [0.9, 2.1, 0.2, 0.48, 0.88, 1.0, 14.0, 50.0, 0.05, 0.08, 0.9],
    "score-power": [5.0, 0.1],
    "loss-to-score-power": [30.0, 0.8],
}


def base(X, scales, exponents):
    kinds = ("nli", "commonsense", "reasoning")
    return sum(w * X[kind] ** k for w, kind, k in zip(scales, kinds, exponents, strict=True))


def test_every_law_has_a_case_here():
    assert set(THETA) == set(LAWS)


@pytest.mark.parametrize(
    ("name", "closed_form"),
    [
        ("performance", lambda X: 8 / (X["r_me"] ** 0.05 * X["r_llm"] ** 0.15 * X["D"] ** 0.3) + 1.0),
        ("convergence", lambda X: 2 * X["r"] ** -0.25 * X["D"] ** 0.8 + 10),
        ("chinchilla", lambda X: 1.817 + 482 / X["N"] ** 0.348 + 2085 / X["D"] ** 0.366),
        (
            "performance_imbalance",
            lambda X: (
                8 / (X["r_me"] ** 0.05 * X["r_llm"] ** 0.15 * X["D"] ** 0.3)
                + np.exp(0.02 * np.log(X["r_me"] / X["r_llm"]) ** 2 - 0.01 * np.log(X["r_me"] / X["r_llm"]))
            ),
        ),
        (
            "performance_overfit",
            lambda X: (
                8 / (X["r_me"] ** 0.05 * X["r_llm"] ** 0.15 * X["D"] ** 0.3)
                + 1.0
                + 0.01 * (X["r_me"] * X["r_llm"]) ** 0.3 / X["D"] ** 0.1
            ),
        ),
        ("performance_no_floor", lambda X: 3 / (X["r_me"] ** 0.02 * X["r_llm"] ** 0.05 * X["D"] ** 0.1)),
        ("performance_no_rank", lambda X: 8 / X["D"] ** 0.3 + 1),
        ("log_linear", lambda X: 8 / X["D"] ** 0.1),
        (
            "sft-scratch",
            lambda X: 80 - 90 / X["N"] ** 0.12 - 110 / X["D_pretrain"] ** 0.11 - 60 / X["D_SFT"] ** 0.09,
        ),
        (
            "sft-pretrained",
            lambda X: (
                base(X, (1.1079, 3.0952, 0.2073), (0.4841, 0.8895, 1.0045))
                - 20 / X["N"] ** 0.05
                - 99.9 / X["D_SFT"] ** 0.12
            ),
        ),
        ("loss-to-score", lambda X: 4.64 + (80 - 4.64) / (1 + 1.75 * X["loss"] ** 1.95)),
        (
            "sft-joint",
            lambda X: base(X, (0.2, 0.9, 0.1), (0.6, 0.95, 1.0)) + 1 - 120 / (X["N"] * X["D_SFT"]) ** 0.06,
        ),
        (
            "sft-nonlinear",
            lambda X: (
                base(X, (0.9, 2.1, 0.2), (0.48, 0.88, 1.0)) ** 0.9 - 14 / X["N"] ** 0.05 - 50 / X["D_SFT"] ** 0.08
            ),
        ),
        ("score-power", lambda X: 5 * X["D_SFT"] ** 0.1),
        ("loss-to-score-power", lambda X: 30 / X["loss"] ** 0.8),
    ],
)
def test_prediction_is_the_printed_equation(name, closed_form):
    np.testing.assert_allclose(get_law(name).predict(THETA[name], GRID), closed_form(GRID), rtol=1e-12)


@pytest.mark.parametrize("name", list(LAWS))
def test_many_draws_predict_as_one_by_one(name):
    law = get_law(name)
    draws = np.array(THETA[name]) * np.array([[1.0], [1.1], [0.9]])
    together = law.predict(draws, GRID)
    assert together.shape == (3, 6)
    np.testing.assert_allclose(together, [law.predict(draw, GRID) for draw in draws], rtol=1e-12)


@pytest.mark.parametrize("name", list(LAWS))
def test_gradient_agrees_with_central_differences(name):
    law, theta = get_law(name), np.array(THETA[name])
    analytic = law.gradient(theta, GRID)
    for j, value in enumerate(theta):
        h = 1e-6 * abs(value)
        up, down = theta.copy(), theta.copy()
        up[j] += h
        down[j] -= h
        numeric = (law.predict(up, GRID) - law.predict(down, GRID)) / (2 * h)
        # Central differences at a relative step of 1e-6 carry about 1e-10 of rounding over the step.
        np.testing.assert_allclose(analytic[:, j], numeric, rtol=1e-6, atol=1e-9 * np.abs(numeric).max())


@pytest.mark.parametrize("name", list(LAWS))
def test_internal_coefficients_round_trip(name):
    law = get_law(name)
    np.testing.assert_allclose(law.natural(law.internal(THETA[name])), THETA[name], rtol=1e-13)


@pytest.mark.parametrize("name", list(LAWS))
def test_starts_lie_at_the_datas_size(name):
    law = get_law(name)
    y = law.predict(THETA[name], GRID)
    starts = projected_starts(law, GRID, y, 32, seed=0)
    assert starts.shape == (32, law.n_params)
    predicted = np.exp(law.log_predict(starts, GRID))
    # A start is no fit: within a factor of 10 of the data everywhere is what the optimiser needs.
    assert np.all(np.abs(np.log(predicted / y)) < np.log(10))


@pytest.mark.parametrize("name", list(LAWS))
def test_declarations_are_complete(name):
    law = get_law(name)
    assert set(law.symbols) == set(law.scales) | set(law.exponent_bounds)
    assert set(law.start_ranges) == set(law.exponent_bounds)
    assert {*law.inputs, law.target} <= set(law.units)
    for symbol, (low, high) in law.start_ranges.items():
        assert law.exponent_bounds[symbol][0] <= low <= high <= law.exponent_bounds[symbol][1]


def test_a_floor_of_exactly_zero_is_allowed():
    law = get_law("convergence")
    predicted = law.predict([2.0, -0.25, 0.8, 0.0], GRID)
    np.testing.assert_allclose(predicted, 2 * GRID["r"] ** -0.25 * GRID["D"] ** 0.8, rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    alphas=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1), st.floats(0.001, 1)),
    floor=st.floats(0, 5),
    larger=st.floats(1.01, 100),
)
def test_law_p_falls_in_every_input_and_never_below_its_floor(alphas, floor, larger):
    law = get_law("performance")
    theta = [5.0, *alphas, floor]
    base = {"r_me": 8.0, "r_llm": 8.0, "D": 100.0}
    at_base = law.predict(theta, base)[0]
    for column in base:
        assert floor <= law.predict(theta, {**base, column: base[column] * larger})[0] < at_base


def test_imbalance_form_bends_where_law_p_cannot():
    law = get_law("performance_imbalance")
    ranks = np.array([2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0])
    X = {"r_me": ranks, "r_llm": np.full(7, 16.0), "D": np.full(7, 1e5)}
    loss = law.predict([8.0, 0.05, 0.15, 0.3, 1.0, 0.02, 0.0], X)
    assert 0 < np.argmin(loss) < 6


def test_unknown_law_names_those_there_are():
    with pytest.raises(ValueError, match="performance, convergence, chinchilla"):
        get_law("kaplan")


def test_rank_zero_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match="leave out rank 0"):
        get_law("performance").predict(THETA["performance"], {**GRID, "r_me": np.zeros(6)})


def test_missing_input_is_named():
    with pytest.raises(ValueError, match="missing: \\['D'\\]"):
        get_law("convergence").predict(THETA["convergence"], {"r": GRID["r"]})


def test_describe_is_one_row_per_law():
    rows = describe(list(LAWS.values()))
    assert [row["name"] for row in rows] == list(LAWS)
