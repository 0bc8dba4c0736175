"""Perplexity (or the metric that is the objective) that law P predicts at the target size, over the rank pairs."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from mars_core.metrics.schema import PERPLEXITY
from mars_core.report.figures.rank_grid import RankGrid, marked_grid_figure
from mars_core.report.study_results import StudyResults


def predicted_heatmap_figure(results: StudyResults) -> Figure | None:
    """Predictions with half the width of their intervals; None without law P or target size."""
    grid = predicted_grid(results)
    if grid is None:
        return None
    best = min(grid.values, key=lambda pair: grid.values[pair])
    return marked_grid_figure(grid, results, {"lowest": best})


def predicted_grid(results: StudyResults) -> RankGrid | None:
    """Law P at D_target for calibrated and compared ranks; None where it cannot be evaluated."""
    ranks_me, ranks_llm = results.grid_ranks_me, results.grid_ranks_llm
    fit, size = results.performance, results.D_target
    if fit is None or size is None or not ranks_me or not ranks_llm:
        return None
    pairs = [(r_me, r_llm) for r_me in ranks_me for r_llm in ranks_llm]
    r_me, r_llm = np.array(pairs, dtype=np.float64).T
    X = {"r_me": r_me, "r_llm": r_llm, "D": np.full(len(pairs), float(size))}
    is_perplexity = results.objective.name == PERPLEXITY
    predicted = fit.predict(X)
    values = np.exp(predicted) if is_perplexity else predicted
    small: dict[tuple[int, int], str] = {}
    if len(fit.draws):
        low, high = fit.predict_interval(X)
        half = 50 * (high - low) / (1.0 if is_perplexity else predicted)
        small = {pair: f"±{width:.1f}%" for pair, width in zip(pairs, half, strict=True) if np.isfinite(width)}
    return RankGrid(ranks_me, ranks_llm, dict(zip(pairs, values.tolist(), strict=True)), small)
