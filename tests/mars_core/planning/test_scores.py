"""Data and score forecasts on a planted posterior whose every answer has a closed form."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mars_core.fitting import Status
from mars_core.fitting.noise_term import NoiseTerm
from mars_core.planning import scores
from mars_core.planning.scores import (
    ORDER_SCATTER,
    DataForecast,
    ScoreLaw,
    fit_score_law,
    forecast_data,
    forecast_score,
    score_at_loss,
    score_points,
)

PAIR, LARGEST = (8, 16), 2048.0
P_MAX, P_MIN, K, GAMMA = 70.0, 30.0, 5.0, 4.0


def loss_of(size):
    return 0.4 + 2.0 * size**-0.35


def score_of(loss):
    return P_MIN + (P_MAX - P_MIN) / (1 + K * loss**GAMMA)


class Planted:
    """A posterior of one pair that knows the loss at every size, up to a factor that is uncertain by `spread`."""

    def __init__(self, spread=0.0, n_draws=4000):
        self.factor = np.exp(spread * np.random.default_rng(0).standard_normal(n_draws))
        self.curves = SimpleNamespace(largest=LARGEST)
        self.surface = SimpleNamespace(pairs=(PAIR,))

    def at(self, size, allowed):
        return SimpleNamespace(quantity=(self.factor * loss_of(size))[:, None])


def law(sigma=1e-9, statuses=(), p_max=P_MAX):
    theta = np.array([p_max, P_MIN, K, GAMMA])
    fit = SimpleNamespace(
        draws=np.tile(theta, (50, 1)),
        coefficients=dict(zip(("P_max", "P_min", "k", "gamma"), theta, strict=True)),
        intervals={"P_max": (p_max - 1, p_max + 1)},
        statuses=statuses,
    )
    return ScoreLaw(fit, NoiseTerm(sigma, 10_000, 0.0), lowest_loss=0.5, n_answers=400)


@pytest.fixture
def without_order(monkeypatch):
    """Scores that no order of samples moves, so that answers have closed forms."""
    monkeypatch.setattr(scores, "ORDER_SCATTER", 0.0)


def codes(found):
    return [status.code for status in found.statuses]


def test_score_at_a_size_is_the_law_of_the_foretold_loss(without_order):
    found = forecast_score(Planted(), law(), PAIR, 4096)
    assert found.loss == pytest.approx(loss_of(4096))
    assert found.score == pytest.approx(score_of(loss_of(4096)), abs=1e-6)
    assert found.interval[0] == pytest.approx(found.interval[1], abs=1e-6)


def test_size_for_a_target_inverts_the_curve(without_order):
    target = score_of(loss_of(3000.0))
    found = forecast_data(Planted(), law(), PAIR, target)
    assert found.size == pytest.approx(3000, rel=1e-3)
    assert found.interval == pytest.approx((3000, 3000), rel=1e-3)
    assert found.reached == 1.0
    assert found.at_size.score == pytest.approx(target, abs=0.01)


def test_interval_of_the_size_is_that_of_the_loss(without_order):
    calibration = Planted(spread=0.02)
    target = score_of(loss_of(3000.0))
    found = forecast_data(calibration, law(), PAIR, target)
    needed = ((loss_of(3000.0) / np.quantile(calibration.factor, [0.025, 0.975]) - 0.4) / 2) ** (-1 / 0.35)
    np.testing.assert_allclose(found.interval, needed, rtol=0.02)


def test_a_measured_score_has_the_noise_of_both_samples_of_answers(without_order):
    found = forecast_score(Planted(), law(), PAIR, 4096, n_asked=1000)
    share = found.score / 100
    expected = 2 * 1.96 * 100 * np.sqrt(share * (1 - share) * (1 / 1000 + 1 / 400))
    assert found.observed_interval[1] - found.observed_interval[0] == pytest.approx(expected, rel=0.05)
    true = 2 * 1.96 * 100 * np.sqrt(share * (1 - share) / 400)
    assert found.interval[1] - found.interval[0] == pytest.approx(true, rel=0.05)


def test_size_for_a_true_score_has_the_noise_of_the_validation_answers(without_order):
    target = score_of(loss_of(2000.0))
    ends = forecast_data(Planted(), law(), PAIR, target, n_asked=1000).interval
    off = 1.96 * 100 * np.sqrt(target / 100 * (1 - target / 100) / 400)
    np.testing.assert_allclose([score_of(loss_of(end)) for end in ends], [target - off, target + off], atol=0.5)


def test_scatter_around_the_law_widens_the_score(without_order):
    found = forecast_score(Planted(), law(sigma=1.5), PAIR, 4096)
    assert found.interval[1] - found.interval[0] == pytest.approx(2 * 1.96 * 1.5, rel=0.05)


def test_what_one_order_of_samples_shares_widens_the_score():
    def width(n_orders):
        one = law()
        found = forecast_score(Planted(), replace(one, n_orders=n_orders), PAIR, 4096)
        return found.interval[1] - found.interval[0]

    assert width(1) == pytest.approx(2 * 1.96 * ORDER_SCATTER * np.sqrt(2), rel=0.05)
    assert width(9) == pytest.approx(2 * 1.96 * ORDER_SCATTER * np.sqrt(10 / 9), rel=0.05)


def test_a_target_above_the_ceiling_has_no_size_and_says_so(without_order):
    found = forecast_data(Planted(), law(), PAIR, 72.0)
    assert found.size is None
    assert found.interval == (None, None)
    assert found.reached == 0.0
    assert "target_out_of_reach" in codes(found)
    assert found.at_size.size == found.furthest == 64 * LARGEST


def test_a_target_that_any_size_reaches_says_so(without_order):
    found = forecast_data(Planted(), law(), PAIR, 31.0)
    assert found.size == found.smallest == LARGEST / 8
    assert "target_already_reached" in codes(found)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (2048, []),
        (4096, []),
        (4200, ["size_beyond_support"]),
        (10_000, ["size_beyond_support", "loss_below_data"]),
        (200, ["size_below_support"]),
    ],
)
def test_extrapolation_is_named(size, expected):
    assert codes(forecast_score(Planted(), law(), PAIR, size)) == expected


def test_a_loss_gives_a_score_without_a_size(without_order):
    found = score_at_loss(law(), 0.6)
    assert found.score == pytest.approx(score_of(0.6), abs=1e-6)
    assert codes(score_at_loss(law(), 0.3, 500)) == ["loss_below_data"]
    assert (found.size, found.pair) == (None, None)


def test_what_the_fit_says_of_its_law_stands_beside_every_answer(without_order):
    doubted = law(statuses=(Status("too_few_points", "few", "error"),))
    for found in (
        forecast_data(Planted(), doubted, PAIR, 50.0),
        forecast_data(Planted(), doubted, PAIR, 72.0),
        score_at_loss(doubted, 0.6),
    ):
        assert "too_few_points" in codes(found)


def test_a_law_that_rises_with_the_loss_is_named(without_order):
    found = forecast_data(Planted(), law(p_max=P_MIN - 10), PAIR, 50.0)
    assert {"target_out_of_reach", "score_rises_with_loss"} <= set(codes(found))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: forecast_data(Planted(), law(), PAIR, 120), "between 0 and 100 points, got 120"),
        (lambda: forecast_score(Planted(), law(), (1, 1), 100), "nothing of pair \\(1, 1\\); it knows \\(8, 16\\)"),
        (lambda: forecast_score(Planted(), law(), PAIR, 0), "at least one sample"),
        (lambda: score_at_loss(law(), 0.0), "above 0 nats"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture(scope="module")
def metrics():
    rng = np.random.default_rng(0)
    rows = [(f"run{run}", loss * (1 + 0.01 * run)) for run in range(6) for loss in np.geomspace(2.5, 0.5, 10)]
    table = pd.DataFrame(rows, columns=["run_id", "val_loss"])
    return table.assign(val_accuracy=score_of(table.val_loss) / 100 + 0.005 * rng.standard_normal(len(table)))


def test_law_of_a_calibration_is_recovered_with_its_scatter(metrics):
    found = fit_score_law(metrics, n_answers=400, bootstrap=20)
    losses = np.array([0.5, 0.8, 1.2, 2.0])
    np.testing.assert_allclose(found.fit.predict({"loss": losses}), score_of(losses), atol=0.6)
    assert found.noise.sigma == pytest.approx(0.5, rel=0.3)
    assert found.lowest_loss == pytest.approx(0.5)


def test_a_ceiling_of_80_is_kept(metrics):
    held = fit_score_law(metrics, p_max_at_least=80.0, bootstrap=4)
    assert held.fit.coefficients["P_max"] >= 80.0 - 1e-9


def test_accuracies_of_0_have_no_logarithm(metrics):
    spoiled = metrics.assign(val_accuracy=0.0)
    assert score_points(spoiled).empty
    partly = metrics.assign(val_accuracy=metrics.val_accuracy.where(metrics.index > 2, 0.0))
    found = score_at_loss(fit_score_law(partly, bootstrap=4), 0.6)
    assert "3 checkpoints" in next(one.message for one in found.statuses if one.code == "no_right_answers_left_out")
    with pytest.raises(ValueError, match="0 checkpoints have an accuracy above 0"):
        fit_score_law(spoiled)


def test_a_forecast_is_stored_and_read_again():
    found = forecast_data(Planted(), law(), PAIR, 50.0)
    again = DataForecast.from_json(found.to_json())
    assert again.size == found.size
    assert again.at_size.observed_interval == found.at_size.observed_interval


@pytest.mark.parametrize("window", ["interval", "cumulative"])
def test_a_law_of_the_training_loss_reads_it_in_its_window(window):
    """Scores made from the cumulative mean are read back through it, and less well through the other window."""
    steps = np.array([8, 16, 32, 64, 128, 256])
    runs = []
    for number, level in enumerate((0.0, 0.1, 0.3)):
        means = 0.5 + level + 3.0 * steps**-0.5
        cumulative = np.cumsum(np.diff(steps, prepend=0) * means) / steps
        read = cumulative if window == "cumulative" else means
        runs.append(
            pd.DataFrame(
                {"run_id": str(number), "step": steps, "train_loss": means, "val_loss": 9.0}
                | {"val_accuracy": score_of(read) / 100}
            )
        )
    metrics = pd.concat(runs)
    other = {"interval": "cumulative", "cumulative": "interval"}[window]
    fitted = {one: fit_score_law(metrics, window=one, bootstrap=50) for one in (window, other)}
    assert fitted[window].noise.sigma < 0.05  # the scores have no noise: what is left is the fit's own tolerance
    assert fitted[other].noise.sigma > 5 * fitted[window].noise.sigma
    found = score_at_loss(fitted[window], 0.9)
    assert found.score == pytest.approx(score_of(0.9), abs=0.5)
