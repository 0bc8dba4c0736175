"""How much data, what score: the losses that a calibration foretells, through the loss-to-score law of its checkpoints.

| symbol | meaning | shape |
|---|---|---|
| D | unique training samples of one fine-tune, annealed at its end | (n_sizes,) |
| loss | what one run of a pair will reach, nats per answer token | (n_draws, n_sizes) |
| score | share of answers right, in points (0 to 100) | (n_draws, n_sizes) |

A draw is a level with its floor and exponent, the pair's difference, the run's own luck, and coefficients of the
loss-to-score law. Its curve over D is one curve, so the size at which it reaches a target is a draw of that size. The
law is fitted to scores on the validation answers, which all checkpoints share: how far those answers lie from all that
could be asked shows in no scatter, and is drawn on top wherever other answers are meant. Answers count as independent,
as if each came from a sample of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mars_core.fitting import LawFit, Status, fit_law
from mars_core.fitting.noise_term import NoiseTerm, noise_term
from mars_core.fitting.result import Severity
from mars_core.laws import get_law
from mars_core.laws.law import Floats
from mars_core.metrics.loss_windows import Window, with_window
from mars_core.ranks import Pair
from mars_core.records import Float, Record
from mars_core.search.outlook import Calibration

POINTS = 100.0
FURTHEST = 64.0  # times the largest calibrated size, up to which a target is looked for
SUPPORTED = 2.0  # times the largest calibrated size; docs/how-much-data.md measures coverage up to there
SMALLEST_SHARE = 1.0 / 8.0  # of the largest calibrated size: below it no run was annealed, and pairs are not compared
N_SIZES = 97
ORDER_SCATTER = 1.2  # points: what all runs of one order of samples share at one loss (measured on the demo's seeds)
LEVEL = 0.95
LIKELY = 0.5
MOST_INVERTED = 0.05  # share of the draws of the law that may rise with the loss before the law is doubted


@dataclass(frozen=True)
class ScoreLaw:
    """The loss-to-score law of a calibration's checkpoints.

    fit: Eq. 4. noise: scatter of checkpoints around it, points. lowest_loss: smallest loss that it has seen.
    n_answers: answers behind each score, None where they are not known. n_orders: orders of samples (seeds) behind it:
    what the runs of one order share at a loss is nothing that their scatter shows. n_left_out: checkpoints without one
    right answer, which have no logarithm.
    """

    fit: LawFit
    noise: NoiseTerm
    lowest_loss: float
    n_answers: int | None = None
    n_orders: int = 1
    n_left_out: int = 0


@dataclass(frozen=True)
class ScoreForecast(Record):
    """What a fine-tune will score.

    size: unique samples; None where a loss was asked about. pair: ranks; None likewise. loss: median of what it will
    reach. score: its median, points. interval: of the true score, which ever more answers would show; of the score on
    the validation answers where `n_answers` is None. observed_interval: of the share right among `n_answers` answers.
    statuses: where this goes further than the data support.
    """

    size: float | None
    pair: Pair | None
    loss: Float
    loss_interval: tuple[Float, Float]
    score: Float
    interval: tuple[Float, Float]
    observed_interval: tuple[Float, Float]
    n_answers: int | None
    level: Float
    statuses: tuple[Status, ...]


@dataclass(frozen=True)
class DataForecast(Record):
    """How much data a target needs.

    target: points. size: smallest size whose median score reaches it, None where none up to `furthest` does. interval:
    of the size that the target needs; an end is None where that draw does not reach it. smallest: sizes below it are
    not looked at, so an end there means this size or less. reached: share of draws that reach it. at_size: what a
    fine-tune of `size` will score; at `furthest` where there is none.
    """

    target: Float
    pair: Pair
    size: float | None
    interval: tuple[float | None, float | None]
    reached: Float
    smallest: Float
    furthest: Float
    largest_calibrated: Float
    at_size: ScoreForecast
    statuses: tuple[Status, ...]


def fit_score_law(
    metrics: pd.DataFrame,
    *,
    n_answers: int | None = None,
    p_max_at_least: float | None = None,
    window: Window | None = None,
    bootstrap: int = 200,
) -> ScoreLaw:
    """Fit Eq. 4 to the checkpoints of calibration runs.

    Args:
        metrics: columns run_id, val_loss, val_accuracy (a share) and, where it is known, seed; every checkpoint of
            every run.
        n_answers: answers behind each accuracy.
        p_max_at_least: least score at a loss of 0; the MLLM-SFT paper holds it at 80 (appendix G).
        window: fit to the training loss in this window of steps, as that paper does, in place of the validation loss;
            `metrics` then have columns step and train_loss too.
        bootstrap: draws of the law, over runs.

    Raises:
        ValueError: too few checkpoints, or no accuracy above 0.
    """
    law = get_law("loss-to-score")
    if p_max_at_least is not None:
        law = law.at_least({"P_max": p_max_at_least})
    points = score_points(metrics) if window is None else windowed_points(metrics, window)
    if len(points) <= law.n_params + 2:
        raise ValueError(
            f"{len(points)} checkpoints have an accuracy above 0, and the loss-to-score law needs more than "
            f"{law.n_params + 2}: calibrate for longer, or with more pairs"
        )
    fit = fit_law(law, points, n_bootstrap=bootstrap)
    n_orders = int(metrics["seed"].nunique()) if "seed" in metrics else 1
    return ScoreLaw(
        fit=fit,
        noise=noise_term(fit, points),
        lowest_loss=float(points["loss"].min()),
        n_answers=n_answers,
        n_orders=n_orders,
        n_left_out=int((metrics["val_accuracy"] <= 0).sum()),
    )


def score_points(metrics: pd.DataFrame) -> pd.DataFrame:
    """Columns run_id, loss, score (points) of the checkpoints whose accuracy is above 0: a logarithm needs that."""
    kept = metrics[(metrics["val_accuracy"] > 0) & np.isfinite(metrics["val_loss"])]
    scores = {"run_id": kept["run_id"].astype(str), "loss": kept["val_loss"], "score": POINTS * kept["val_accuracy"]}
    return pd.DataFrame(scores).reset_index(drop=True)


def windowed_points(metrics: pd.DataFrame, window: Window) -> pd.DataFrame:
    """The same with the training loss in a window of steps: columns run_id, loss, score."""
    scores = (POINTS * metrics["val_accuracy"]).where(metrics["val_accuracy"] > 0)
    runs = metrics[["step", "train_loss"]].assign(run_id=metrics["run_id"].astype(str), score=scores)
    return with_window(runs[np.isfinite(runs["train_loss"])], window)[["run_id", "loss", "score"]]


def forecast_score(
    calibration: Calibration, law: ScoreLaw, pair: Pair, size: float, n_asked: int | None = None, seed: int = 0
) -> ScoreForecast:
    """What a fine-tune of `pair` on `size` unique samples will score.

    Args:
        calibration: posterior of the losses (the objective must be perplexity).
        law: of the same runs.
        pair: one of the calibration's.
        size: unique samples.
        n_asked: answers that the score will be taken over, of another set than the calibration's validation answers;
            None for those answers themselves.
        seed: of the draws.

    Raises:
        ValueError: the size is not positive, or the calibration does not know the pair.
    """
    losses = _losses(calibration, pair, np.array([size]))
    scores = _scores(law, losses, n_asked, seed)
    observed = _observed(scores[:, 0], n_asked, seed)
    return ScoreForecast(
        size=float(size),
        pair=pair,
        loss=float(np.median(losses)),
        loss_interval=_interval(losses[:, 0]),
        score=float(np.median(scores)),
        interval=_interval(scores[:, 0]),
        observed_interval=_interval(observed),
        n_answers=n_asked,
        level=LEVEL,
        statuses=_statuses(calibration, law, size, float(np.median(losses))),
    )


def forecast_data(
    calibration: Calibration, law: ScoreLaw, pair: Pair, target: float, n_asked: int | None = None, seed: int = 0
) -> DataForecast:
    """The smallest dataset whose fine-tune reaches a target score; arguments as `forecast_score`, target in points.

    With `n_asked` the target is a true score; without, a score on the validation answers.

    Raises:
        ValueError: the target is not between 0 and 100.
    """
    if not 0 < target < POINTS:
        raise ValueError(f"a target score lies between 0 and 100 points, got {target:g}")
    furthest = FURTHEST * calibration.curves.largest
    sizes = np.geomspace(SMALLEST_SHARE * calibration.curves.largest, furthest, N_SIZES)
    scores = np.maximum.accumulate(_scores(law, _losses(calibration, pair, sizes), n_asked, seed), axis=1)
    needed = _first_size(scores, sizes, target)
    reached = float(np.mean(np.isfinite(needed)))
    median = float(np.median(needed))
    size = median if np.isfinite(median) else None
    low, high = np.quantile(needed, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    at_size = forecast_score(calibration, law, pair, furthest if size is None else size, n_asked, seed)
    found = DataForecast(
        target=target,
        pair=pair,
        size=size,
        interval=(_finite(low), _finite(high)),
        reached=reached,
        smallest=float(sizes[0]),
        furthest=furthest,
        largest_calibrated=calibration.curves.largest,
        at_size=at_size,
        # What is noted of the furthest size itself would only repeat that the target is out of reach.
        statuses=at_size.statuses if size is not None else tuple(_law_statuses(law)),
    )
    return replace(found, statuses=(*_target_statuses(found, law, scores[:, 0]), *found.statuses))


def score_at_loss(law: ScoreLaw, loss: float, n_asked: int | None = None, seed: int = 0) -> ScoreForecast:
    """The score of a model with this loss, of the kind that the law was fitted to, without asking it anything."""
    if not loss > 0:
        raise ValueError(f"a loss is above 0 nats per answer token, got {loss:g}")
    losses = np.full((2000, 1), loss)
    scores = _scores(law, losses, n_asked, seed)
    statuses = (*_law_statuses(law), *_loss_statuses(law, loss))
    return ScoreForecast(
        size=None,
        pair=None,
        loss=loss,
        loss_interval=(loss, loss),
        score=float(np.median(scores)),
        interval=_interval(scores[:, 0]),
        observed_interval=_interval(_observed(scores[:, 0], n_asked, seed)),
        n_answers=n_asked,
        level=LEVEL,
        statuses=statuses,
    )


def _losses(calibration: Calibration, pair: Pair, sizes: Floats) -> Floats:
    """Draws of the loss that one run will reach, (n_draws, n_sizes)."""
    if pair not in calibration.surface.pairs:
        known = ", ".join(f"({me}, {llm})" for me, llm in calibration.surface.pairs)
        raise ValueError(f"the calibration says nothing of pair ({pair[0]}, {pair[1]}); it knows {known}")
    if not np.all(sizes > 0):
        raise ValueError(f"a dataset has at least one sample, got a size of {sizes.min():g}")
    return np.column_stack([calibration.at(float(size), [pair]).quantity[:, 0] for size in sizes])


def _scores(law: ScoreLaw, losses: Floats, n_asked: int | None, seed: int) -> Floats:
    """Draws of the score of a run with these losses: on the validation answers, or the true one where others are asked.

    A draw of the true score moves along its whole curve by one deviation of the validation answers.
    """
    rng = np.random.default_rng([seed, 7])
    n_draws = len(losses)
    coefficients = law.fit.draws[rng.integers(len(law.fit.draws), size=n_draws)]
    P_max, P_min, k, gamma = (coefficients[:, [column]] for column in range(4))
    clean = P_min + (P_max - P_min) / (1.0 + k * np.maximum(losses, 1e-12) ** gamma)
    freedom = law.noise.freedom
    sigma = law.noise.sigma * np.sqrt(freedom / rng.chisquare(freedom, n_draws))
    order = ORDER_SCATTER * np.sqrt(1.0 + 1.0 / law.n_orders)  # of the run to come, and of those behind the law
    scatter = np.hypot(sigma, order) * rng.standard_normal(n_draws)
    scores = np.asarray(np.clip(clean + scatter[:, None], 0.0, POINTS))
    if n_asked is None or law.n_answers is None:
        return scores
    return _resampled(scores, law.n_answers, np.random.default_rng([seed, 9]).standard_normal((n_draws, 1)))


def _observed(scores: Floats, n_asked: int | None, seed: int) -> Floats:
    """Draws of the share right among so many answers; the validation answers themselves are in the scores already."""
    if n_asked is None:
        return scores
    return _resampled(scores, n_asked, np.random.default_rng([seed, 8]).standard_normal(len(scores)))


def _resampled(scores: Floats, n_answers: int, deviation: Floats) -> Floats:
    """Scores that so many answers deviate from, by standard deviations of a share."""
    share = np.clip(scores / POINTS, 1e-3, 1 - 1e-3)
    return np.asarray(np.clip(scores + POINTS * np.sqrt(share * (1 - share) / n_answers) * deviation, 0.0, POINTS))


def _first_size(scores: Floats, sizes: Floats, target: float) -> Floats:
    """Size at which each draw first reaches the target, log-linear between sizes; infinite where it never does."""
    reached = scores >= target
    first = np.argmax(reached, axis=1)
    needed = np.full(len(scores), np.inf)
    for draw in np.flatnonzero(reached.any(axis=1)):
        at = int(first[draw])
        if at == 0:
            needed[draw] = sizes[0]
            continue
        below, above = scores[draw, at - 1], scores[draw, at]
        share = (target - below) / (above - below)
        needed[draw] = np.exp(np.log(sizes[at - 1]) + share * np.log(sizes[at] / sizes[at - 1]))
    return needed


def _statuses(calibration: Calibration, law: ScoreLaw, size: float, loss: float) -> tuple[Status, ...]:
    ratio = size / calibration.curves.largest
    found = list(_law_statuses(law))
    if ratio > SUPPORTED:
        found.append(
            Status(
                "size_beyond_support",
                f"{size:,.0f} samples are {ratio:.1f} times the largest calibrated size "
                f"({calibration.curves.largest:,.0f}); intervals are checked up to {SUPPORTED:g} times: calibrate with "
                "more samples before you rely on this",
                "warning",
            )
        )
    if ratio < SMALLEST_SHARE:
        found.append(
            Status(
                "size_below_support",
                f"{size:,.0f} samples are less than an eighth of the largest calibrated size "
                f"({calibration.curves.largest:,.0f}): no run of that length was trained to its end; calibrate with "
                "fewer samples to see",
                "warning",
            )
        )
    found += _loss_statuses(law, loss)
    return tuple(found)


def _loss_statuses(law: ScoreLaw, loss: float) -> Sequence[Status]:
    if loss >= law.lowest_loss:
        return ()
    severity: Severity = "info" if loss >= 0.8 * law.lowest_loss else "warning"
    message = (
        f"a loss of {loss:.3f} lies {1 - loss / law.lowest_loss:.0%} below the smallest that the loss-to-score law has "
        f"seen ({law.lowest_loss:.3f}): how the score goes on from there is the law's form, not a measurement"
    )
    return (Status("loss_below_data", message, severity),)


def _law_statuses(law: ScoreLaw) -> Sequence[Status]:
    """What speaks against the loss-to-score law itself: all that its fit says, and what only a plan can tell."""
    found = list(law.fit.statuses)
    symbols = list(law.fit.coefficients)
    P_max, P_min = (law.fit.draws[:, symbols.index(symbol)] for symbol in ("P_max", "P_min"))
    inverted = float(np.mean(P_max <= P_min))
    if law.fit.coefficients["P_max"] <= law.fit.coefficients["P_min"] or inverted > MOST_INVERTED:
        message = (
            f"the loss-to-score law rises with the loss (P_max {law.fit.coefficients['P_max']:.3g} and P_min "
            f"{law.fit.coefficients['P_min']:.3g}; so do {inverted:.0%} of its draws): these checkpoints do not say "
            "what a lower loss is worth; calibrate for longer, or on answers that the model learns"
        )
        found.append(Status("score_rises_with_loss", message, "error"))
    if law.n_left_out:
        message = (
            f"{law.n_left_out} checkpoints without one right answer are left out, since the law is fitted to "
            f"logarithms; its score at a large loss (P_min {law.fit.coefficients['P_min']:.3g}) is a little high"
        )
        found.append(Status("no_right_answers_left_out", message, "info"))
    return tuple(found)


def _target_statuses(found: DataForecast, law: ScoreLaw, smallest: Floats) -> Sequence[Status]:
    top = law.fit.coefficients["P_max"]
    if found.size is None:
        low, high = law.fit.intervals["P_max"]
        message = (
            f"no size up to {found.furthest:,.0f} samples ({FURTHEST:g} times the largest calibrated) is expected to "
            f"reach {found.target:g} points: {found.reached:.0%} of the draws do; the law's highest score is "
            f"{top:.1f} ({low:.1f} to {high:.1f}). A stronger base model or another target would"
        )
        return (Status("target_out_of_reach", message, "error"),)
    if float(np.mean(smallest >= found.target)) >= LIKELY:
        message = (
            f"{found.target:g} points are expected of {found.smallest:,.0f} samples already, the smallest size that is "
            "looked at"
        )
        return (Status("target_already_reached", message, "info"),)
    return ()


def _interval(draws: Floats) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
