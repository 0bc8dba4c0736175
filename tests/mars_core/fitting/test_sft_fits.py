"""Laws of multimodal SFT fitted to planted tables: recovery, the floor of P_max, independent fits, the noise term."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import curve_fit

from mars_core.fitting import LawFit, fit_law
from mars_core.fitting.best_fits import best_fits
from mars_core.fitting.noise_term import new_point_interval, noise_term
from mars_core.laws import get_law
from mars_core.laws.sft_published import published

SIZES = np.geomspace(0.1, 7.0, 8)


def scratch_table(noise=0.0):
    rows = [(n, ratio * n, D) for n in (0.05, 0.1, 0.5, 1.0, 7.0) for ratio in (0.25, 4, 16) for D in SIZES]
    return planted("sft-scratch", pd.DataFrame(rows, columns=["N", "D_pretrain", "D_SFT"]), noise)


def pretrained_table(law, noise=0.0):
    rng = np.random.default_rng(1)
    rows = [
        (*scores, n, D)
        for scores, n in zip(rng.uniform(30, 80, (15, 3)), rng.choice([0.5, 1.5, 3.0, 7.0], 15), strict=True)
        for D in SIZES
    ]
    return planted(law, pd.DataFrame(rows, columns=["nli", "commonsense", "reasoning", "N", "D_SFT"]), noise)


def loss_table(noise=0.0, n=40):
    return planted("loss-to-score", pd.DataFrame({"loss": np.geomspace(0.4, 3.0, n)}), noise)


THETA = {
    "sft-scratch": np.array([90.0, 6.0, 5.0, 12.0, 0.3, 0.25, 0.4]),
    "sft-pretrained": np.array([0.3, 0.9, 0.1, 0.7, 0.95, 1.0, 3.0, 4.0, 0.3, 0.4]),
    "sft-joint": np.array([0.25, 0.7, 0.05, 0.6, 0.95, 1.0, 10.0, 0.2]),
    "sft-nonlinear": np.array([0.9, 2.1, 0.2, 0.48, 0.88, 1.0, 6.0, 9.0, 0.2, 0.3, 0.9]),
    "loss-to-score": published("loss-to-score/mean-over-interval").theta,
}


def planted(law, table, noise):
    clean = get_law(law).predict(THETA[law], table)
    assert clean.min() > 1
    return table.assign(score=clean * np.exp(noise * np.random.default_rng(0).standard_normal(len(table))))


TABLES = {
    "sft-scratch": scratch_table,
    "sft-pretrained": lambda noise=0.0: pretrained_table("sft-pretrained", noise),
    "sft-joint": lambda noise=0.0: pretrained_table("sft-joint", noise),
    "sft-nonlinear": lambda noise=0.0: pretrained_table("sft-nonlinear", noise),
    "loss-to-score": loss_table,
}


@pytest.mark.parametrize("law", list(TABLES))
def test_noiseless_law_is_recovered(law):
    fit = fit_law(law, TABLES[law](), n_starts=40, n_bootstrap=4, hold_out=False)
    np.testing.assert_allclose(fit.theta, THETA[law], rtol=1e-3)


def test_prediction_beyond_the_data_beats_the_straight_line():
    fit = fit_law("sft-scratch", scratch_table(noise=0.01), n_starts=40, n_bootstrap=20)
    assert fit.held_out is not None
    assert fit.held_out.rule == "D_SFT >= 7"
    assert fit.held_out.mape < 0.02 < fit.held_out.rivals["score-power"]


def test_loss_law_is_held_out_at_the_smallest_losses():
    fit = fit_law("loss-to-score", loss_table(noise=0.01), n_starts=40, n_bootstrap=20)
    assert fit.held_out is not None
    assert fit.held_out.rule.startswith("loss <= ")
    assert fit.held_out.mape < fit.held_out.rivals["loss-to-score-power"]
    assert not fit.has("starts_disagree")


def test_loss_law_agrees_with_least_squares_where_the_huber_loss_is_quadratic():
    table = loss_table(noise=0.01)
    fit = fit_law("loss-to-score", table, delta=1e3, n_starts=40, n_bootstrap=4, hold_out=False)

    def log_score(loss, top, bottom, k, gamma):
        return np.log(bottom + (top - bottom) / (1 + k * loss**gamma))

    expected, _ = curve_fit(log_score, table.loss, np.log(table.score), p0=THETA["loss-to-score"])
    np.testing.assert_allclose(fit.theta, expected, rtol=1e-4)


def test_p_max_held_at_80_ends_there_where_the_data_would_have_it_lower():
    table = planted_low_ceiling()
    free = fit_law("loss-to-score", table, n_starts=40, n_bootstrap=4, hold_out=False)
    held = fit_law(
        get_law("loss-to-score").at_least({"P_max": 80.0}), table, n_starts=40, n_bootstrap=4, hold_out=False
    )
    assert free.coefficients["P_max"] == pytest.approx(55, rel=0.02)
    assert held.coefficients["P_max"] == pytest.approx(80.0)
    at_bound = next(status.message for status in held.statuses if status.code == "at_bound")
    assert "P_max ended at the least value that was asked for (80): the data want less" in at_bound
    assert held.objective > free.objective


def planted_low_ceiling():
    table = pd.DataFrame({"loss": np.geomspace(0.3, 3.0, 40)})
    return table.assign(score=get_law("loss-to-score").predict([55.0, 5.0, 1.5, 2.5], table))


def test_best_fits_are_ranked_and_agree_where_the_optimum_is_one():
    found = best_fits(get_law("loss-to-score"), loss_table(noise=0.01), n_fits=30)
    assert len(found) == 5
    assert [one.objective for one in found] == sorted(one.objective for one in found)
    gammas = [one.coefficients["gamma"] for one in found]
    assert max(gammas) - min(gammas) < 1e-3
    assert found[0].r_squared > 0.99


def test_best_fits_refuse_to_keep_more_than_they_make():
    with pytest.raises(ValueError, match="got 5 of 3"):
        best_fits(get_law("loss-to-score"), loss_table(), n_fits=3)


def test_noise_term_recovers_sigma_in_points_and_its_interval_covers_new_points():
    rng = np.random.default_rng(3)
    losses = pd.DataFrame({"loss": np.geomspace(0.4, 3.0, 200)})
    clean = get_law("loss-to-score").predict(THETA["loss-to-score"], losses)
    table = losses.assign(score=np.maximum(clean + 1.5 * rng.standard_normal(200), 0.5))
    fit = fit_law("loss-to-score", table, n_starts=30, n_bootstrap=100, hold_out=False)
    noise = noise_term(fit, table)
    assert noise.sigma == pytest.approx(1.5, rel=0.15)
    assert noise.freedom == 196
    low, high = new_point_interval(fit, noise, losses)
    again = clean + 1.5 * rng.standard_normal(200)
    assert np.mean((low <= again) & (again <= high)) == pytest.approx(0.95, abs=0.05)


def test_a_fit_is_stored_and_read_again():
    fit = fit_law("sft-joint", TABLES["sft-joint"](), n_starts=20, n_bootstrap=4, hold_out=False)
    again = LawFit.from_json(fit.to_json())
    X = {"nli": 60.0, "commonsense": 60.0, "reasoning": 60.0, "N": 1.0, "D_SFT": 2.0}
    np.testing.assert_array_equal(again.predict(X), fit.predict(X))
