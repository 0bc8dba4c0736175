"""Perplexity (or the metric that is the objective) that is predicted at the target size, over the rank pairs."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from mars_core.metrics.schema import PERPLEXITY
from mars_core.report import formatting as f
from mars_core.report.figures.rank_grid import RankGrid, marked_grid_figure
from mars_core.report.study_results import StudyResults


def predicted_heatmap_figure(results: StudyResults) -> Figure | None:
    """Predictions with each pair's excess over the chosen one; None where the search predicted nothing."""
    grid = predicted_grid(results)
    if grid is None:
        return None
    best = min(grid.values, key=lambda pair: grid.values[pair])
    return marked_grid_figure(grid, results, {"lowest": best})


def predicted_grid(results: StudyResults) -> RankGrid | None:
    """Predictions that the choice was made from; None where there are none."""
    choice = results.choice
    if choice is None:
        return None
    read = math.exp if results.objective.name == PERPLEXITY else float
    values = {candidate.pair: read(candidate.loss) for candidate in choice.candidates if candidate.loss is not None}
    if not values:
        return None
    others = [candidate for candidate in choice.candidates if candidate.excess is not None]
    small = {c.pair: f.signed_percent(c.excess, 2) for c in others if c.pair != choice.pair}
    return RankGrid(results.grid_ranks_me, results.grid_ranks_llm, values, small)
