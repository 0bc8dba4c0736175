"""Signal and noise of the calibration: spread over pairs against spread over seeds."""

from __future__ import annotations

import numpy as np

from mars_core.report import formatting as f
from mars_core.report.study_results import StudyResults, last_per_size, mean_per_pair


def spread_sentence(results: StudyResults) -> str:
    """One sentence on whether ranks matter more than chance at the largest size."""
    rows = last_per_size(results.metrics)
    rows = rows[rows["unique_samples"] == results.sizes[-1]]
    means = mean_per_pair(rows)
    if len(means) < 2:
        return ""
    worst, best = max(means.values()), min(means.values())
    pairs = f"The worst pair's perplexity is {f.percent(worst / best - 1)} above the best pair's"
    deviation = seed_deviation(results)
    if deviation is None:
        return f"{pairs}; each pair ran with one seed, so how much of that is chance is not known."
    return f"{pairs}; runs of one pair with different seeds differ by {f.percent(deviation)} (standard deviation)."


def seed_deviation(results: StudyResults) -> float | None:
    """Pooled standard deviation over seeds of the validation loss at the largest size; None with single seeds.

    In nats, which for small values is the relative deviation of perplexity.
    """
    rows = last_per_size(results.metrics)
    groups = rows[rows["unique_samples"] == results.sizes[-1]].groupby(["r_me", "r_llm"])["val_loss"]
    degrees = groups.count() - 1
    if degrees.sum() < 1:
        return None
    return float(np.sqrt((groups.var().fillna(0.0) * degrees).sum() / degrees.sum()))
