"""Laws of multimodal SFT: the paper's numbers, the compute frontier against a constrained optimiser, floors."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from mars_core.laws import get_law
from mars_core.laws.base_terms import factor_and_weights
from mars_core.laws.sft_frontier import (
    best_allocation,
    exponents,
    printed_allocation,
    printed_exponents,
    sft_relation,
    sft_tokens,
)
from mars_core.laws.sft_published import PUBLISHED, SECTION_6_1, published
from mars_core.laws.sft_reproduced import TABLE_1, reproduce

STEEP = {"A": 100.0, "B": 30.0, "C": 60.0, "E": 20.0, "alpha": 0.3, "beta": 0.25, "gamma": 0.4}
SWAPPED = {**STEEP, "beta": 0.4, "gamma": 0.25}


@pytest.mark.parametrize("row", TABLE_1, ids=lambda row: f"{row[0]:g}B")
def test_table_1_follows_from_the_coefficients(row):
    N, D_pretrain, D_SFT, flops = row
    tokens = sft_tokens(published("sft-scratch").coefficients, D_pretrain)
    # The table's trillions have two digits: half a unit of the last is up to 3.3% at 1.5 trillion.
    assert tokens == pytest.approx(D_SFT, rel=0.0205)
    assert 6 * N * 1e9 * (D_pretrain + tokens) * 1e9 == pytest.approx(flops, rel=0.006)


def test_relation_of_appendix_e_is_the_headline():
    factor, power = sft_relation(published("sft-scratch").coefficients)
    assert round(factor, 2) == 0.48
    assert round(power, 2) == 0.98


def test_relation_inverts_as_the_paper_prints_it():
    theta = published("sft-scratch").coefficients
    beta, gamma = theta["beta"], theta["gamma"]
    D_SFT = sft_tokens(theta, 205.1)
    printed = (beta * theta["C"] / (gamma * theta["E"])) ** (1 / (beta + 1)) * D_SFT ** ((gamma + 1) / (beta + 1))
    assert printed == pytest.approx(205.1, rel=1e-12)


@pytest.mark.parametrize("theta", [STEEP, SWAPPED], ids=["pretraining dominates", "fine-tuning dominates"])
@pytest.mark.parametrize("flops", [1e3, 1e6])
def test_best_allocation_is_what_a_constrained_optimiser_finds(theta, flops):
    found = best_allocation(theta, flops)

    def lost(logs):
        n, p = np.exp(logs)
        sft = flops / (6 * n) - p  # the constraint
        if sft <= 0:
            return 1e9
        return theta["B"] / n ** theta["alpha"] + theta["C"] / p ** theta["beta"] + theta["E"] / sft ** theta["gamma"]

    start = np.log([found.N * 2, found.D_pretrain / 3])
    options = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 4000}
    best = minimize(lost, start, method="Nelder-Mead", options=options)
    assert found.flops == pytest.approx(flops, rel=1e-9)
    np.testing.assert_allclose(np.exp(best.x), [found.N, found.D_pretrain], rtol=1e-4)


@pytest.mark.parametrize("theta", [STEEP, SWAPPED], ids=["pretraining dominates", "fine-tuning dominates"])
def test_exponents_are_the_slopes_of_the_frontier_and_keep_the_constraint(theta):
    # The kind of data that does not dominate fades as a power of compute: it must be large.
    low, high = (best_allocation(theta, 10.0**power) for power in (90, 92))
    for name in ("N", "D_pretrain", "D_SFT"):
        slope = math.log(getattr(high, name) / getattr(low, name)) / math.log(100)
        assert slope == pytest.approx(getattr(exponents(theta), name), abs=2e-3)
    assert exponents(theta).constraint == pytest.approx(1.0, abs=1e-12)


def test_printed_exponents_break_the_constraint_and_so_do_printed_constants():
    theta = published("sft-scratch").coefficients
    assert printed_exponents(theta).constraint == pytest.approx(11.172, abs=1e-3)
    assert pytest.approx(0.054 / 0.093, rel=1e-12) == exponents(theta).N
    budget = 2.81e19 / 1e18
    assert best_allocation(theta, budget).flops == pytest.approx(budget, rel=1e-9)
    assert printed_allocation(theta, budget).flops > 1e100 * budget


def test_frontier_refuses_what_has_no_optimum():
    with pytest.raises(ValueError, match="must be positive"):
        best_allocation({**STEEP, "gamma": 0.0}, 1e6)


def test_printed_f_and_weights_are_the_laws_products():
    preset = published("sft-pretrained/overall")
    theta = dict(zip(get_law("sft-pretrained").symbols, preset.theta, strict=True))
    F, weights = factor_and_weights(theta, "F")
    assert pytest.approx(4.4104) == F
    np.testing.assert_allclose(weights, [0.2512, 0.7018, 0.0470], rtol=1e-12)
    assert sum(preset.coefficients[w] for w in ("w1", "w2", "w3")) == pytest.approx(1.0, abs=1e-4)


def test_published_loss_laws_predict_between_their_ends():
    for name in (name for name in PUBLISHED if name.startswith("loss-to-score/")):
        one = published(name)
        scores = get_law("loss-to-score").predict(one.theta, {"loss": np.array([1e-6, 1.0, 1e6])})
        assert scores[0] == pytest.approx(80.0, abs=1e-3)
        middle = one.coefficients["P_min"] + (80 - one.coefficients["P_min"]) / (1 + one.coefficients["k"])
        assert scores[1] == pytest.approx(middle)
        assert scores[2] == pytest.approx(one.coefficients["P_min"], abs=1e-3)


def test_unknown_preset_names_those_there_are():
    with pytest.raises(ValueError, match="loss-to-score/ocr"):
        published("table-9")


def test_reproduction_says_which_numbers_do_not_follow():
    off = {
        row.quantity: row.deviation for row in reproduce() if row.deviation is not None and abs(row.deviation) > 0.021
    }
    assert sum("overall fit" in quantity for quantity in off) == len(SECTION_6_1) - 1  # F alone is within 2.1%
    assert not any("billions) at N" in quantity and "single" not in quantity for quantity in off)
    derived = {row.quantity: row for row in reproduce() if row.derived}
    constraint = next(row for quantity, row in derived.items() if "must be 1" in quantity)
    assert (constraint.deviation, constraint.reproduced) == (None, pytest.approx(1.0))


def test_eq_1_in_billions_gives_no_score():
    scores = {row.quantity: row.reproduced for row in reproduce() if row.kind == "score"}
    eq_1 = {quantity: score for quantity, score in scores.items() if "Eq. 1" in quantity}
    assert len(eq_1) == 6
    assert all(score < 0 for quantity, score in eq_1.items() if "billions" in quantity)


def test_table_2_gives_scores_in_single_parameters_and_tokens_only():
    billions, ones = (row.reproduced for row in reproduce() if row.quantity.startswith("Table 2"))
    assert (billions, ones) == (pytest.approx(5.6, abs=0.1), pytest.approx(54.8, abs=0.1))
    assert all(preset.units for preset in PUBLISHED.values())


def test_a_constant_can_be_held_at_a_least_value():
    held = get_law("loss-to-score").at_least({"P_max": 80.0})
    assert held.scale_bounds["P_max"] == (80.0, 100.0)
    assert get_law("loss-to-score").scale_bounds["P_max"][0] < 1


@pytest.mark.parametrize(
    ("law", "limits", "message"),
    [
        ("loss-to-score", {"P_top": 80.0}, "it has: P_max, P_min"),
        ("loss-to-score", {"k": 1.0}, "no constant 'k'"),
        ("loss-to-score", {"P_max": 100.0}, "below 100, got 100"),
        ("performance", {"E": 1.0}, "it has: none"),
    ],
)
def test_a_least_value_that_cannot_be_held_is_refused(law, limits, message):
    with pytest.raises(ValueError, match=message):
        get_law(law).at_least(limits)
