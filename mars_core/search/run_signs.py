"""What the runs themselves say is wrong, read off their checkpoints: each a sentence with what to do.

A run whose rate is far too low goes on falling as fast at the end as at the beginning, for the same sum of learning
rates: it has only begun to learn. A run that learns slows down.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

NOT_SLOWED = 0.4  # share of the drop in the second half of the summed learning rate; 0.5 where nothing slows down
HARDLY_MOVED = 0.03  # of the training loss
FEWEST_CHECKPOINTS = 4
OFTEN_CLIPPED = 0.5  # of the steps
PEAKS = ["peak_lr_me", "peak_lr_llm"]
MODULES = (("r_me", "grad_norm_me", "vision encoder"), ("r_llm", "grad_norm_llm", "LLM"))


def run_warnings(metrics: pd.DataFrame) -> list[str]:
    """Sentences on what to change before the runs are trusted; none where nothing looks wrong.

    Args:
        metrics: checkpoints of runs that did not diverge, columns of `mars_core.metrics.schema`, peak rates filled in.
    """
    return [*_too_low(metrics), *_stuck(metrics)]


def run_notes(metrics: pd.DataFrame) -> list[str]:
    """Sentences on what is seen in the runs and may well be harmless: under Adam clipping mostly is."""
    return list(_clipped(metrics))


def _too_low(metrics: pd.DataFrame) -> Iterator[str]:
    """Only where one rate was calibrated: of several, the best one decides."""
    peaks = metrics.loc[(metrics["r_me"] > 0) & (metrics["r_llm"] > 0), PEAKS]
    if len(peaks.drop_duplicates()) != 1:
        return
    best = _best_run(metrics)
    first, last = best.iloc[0], best.iloc[-1]
    rate = f"the learning rate {last['peak_lr_llm']:.2g} is probably far too low: raise recipe.learning_rate, or let "
    advice = f"{rate}`calibration.learning_rates: auto` find it"
    pair = f"({last['r_me']:.0f}, {last['r_llm']:.0f})"
    fell = f"from {first['val_loss']:.3g} to {last['val_loss']:.3g}"
    if last["train_loss"] > (1.0 - HARDLY_MOVED) * first["train_loss"]:
        moved = f"from {first['train_loss']:.3g} to {last['train_loss']:.3g}"
        yield f"the training loss of the best run, {pair}, hardly moved, {moved}: {advice}"
    elif _late_share(best) > NOT_SLOWED:
        yield f"the loss of the best run, {pair}, fell {fell} and did not slow down: {advice}"


def _best_run(metrics: pd.DataFrame) -> pd.DataFrame:
    """Checkpoints of the longest run that ends lowest."""
    ends = metrics[metrics["step"] == metrics.groupby("run_id")["step"].transform("max")]
    longest = ends[ends["step"] == ends["step"].max()]
    run = longest.loc[longest["val_loss"].idxmin(), "run_id"]
    checkpoints: pd.DataFrame = metrics[metrics["run_id"] == run].sort_values("step")
    return checkpoints


def _late_share(run: pd.DataFrame) -> float:
    """Share of a run's drop in validation loss that falls into the second half of its summed learning rates; 0 where
    that cannot be told."""
    step, lr, loss = (run[name].to_numpy(dtype=np.float64) for name in ("step", "lr", "val_loss"))
    drop = loss[0] - loss[-1]
    if len(run) < FEWEST_CHECKPOINTS or drop <= 0.0:
        return 0.0
    summed = np.concatenate([[0.0], np.cumsum(np.diff(step) * (lr[1:] + lr[:-1]) / 2.0)])
    middle = float(np.interp(0.5 * summed[-1], summed, loss))
    return float((middle - loss[-1]) / drop)


def _clipped(metrics: pd.DataFrame) -> Iterator[str]:
    known = metrics.dropna(subset=["clipped_share"])
    if known.empty:
        return
    shares = known.sort_values("step").groupby("run_id")["clipped_share"].last()
    often = shares > OFTEN_CLIPPED
    if 2 * int(often.sum()) > len(shares):
        yield (
            f"the gradient was clipped in more than half of the steps in {int(often.sum())} of {len(shares)} runs: "
            "raise recipe.max_grad_norm (0 for no clipping), or lower the learning rate if the losses jump"
        )


def _stuck(metrics: pd.DataFrame) -> Iterator[str]:
    for rank, norm, name in MODULES:
        adapted = metrics[metrics[rank] > 0]
        largest = adapted.groupby("run_id")[norm].max()
        stuck = int((largest == 0.0).sum())
        if stuck:
            yield (
                f"the adapters of the {name} had no gradient at any checkpoint in {stuck} of {len(largest)} runs: they "
                "never moved; see with `mars model inspect` whether the right layers are adapted, and with `mars data "
                "check` whether the samples have images"
            )
