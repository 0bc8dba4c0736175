"""Measured validation perplexity over rank pairs: the largest calibrated size, and earlier ones in small."""

from __future__ import annotations

from matplotlib.figure import Figure

from mars_core.report.figures import style
from mars_core.report.figures.rank_grid import RankGrid, marked_grid_figure
from mars_core.report.study_results import StudyResults, last_per_size, mean_per_pair

SMALL_HEIGHT = 2.5
MOST_SMALL_PANELS = 4
MOST_SMALL_COLUMNS = 5  # with more, values no longer fit into the cells and are left out


def heatmap_figure(results: StudyResults) -> Figure | None:
    """The largest calibrated size, with the pairs that matter marked; None without runs."""
    if results.metrics.empty:
        return None
    grid = measured_grid(results, results.sizes[-1])
    best = min(grid.values, key=lambda pair: grid.values[pair], default=None)
    return marked_grid_figure(grid, results, {"best measured": best, "reference": results.reference})


def earlier_sizes_figure(results: StudyResults) -> Figure | None:
    """Small multiples of up to four earlier sizes, about a factor of two apart; None where there is only one size."""
    sizes = earlier_sizes(results.sizes)
    if not sizes:
        return None
    figure = style.new_figure(SMALL_HEIGHT)
    panels = figure.subplots(1, MOST_SMALL_PANELS, squeeze=False)[0]
    for axes, size in zip(panels, sizes, strict=False):
        fits = len(results.ranks_llm) <= MOST_SMALL_COLUMNS
        measured_grid(results, size).draw(axes, digits=2, size=style.SMALL, print_values=fits)
        style.label(axes, title=f"D = {size:,}", x="r_llm", y="r_me" if size == sizes[0] else "")
    for spare in panels[len(sizes) :]:
        spare.remove()
    return figure


def measured_grid(results: StudyResults, size: int) -> RankGrid:
    """Perplexity of every calibrated pair at one size, mean over seeds, at the best rate that it was trained at."""
    rows = last_per_size(results.all_runs)
    values = mean_per_pair(rows[rows["unique_samples"] == size])
    return RankGrid(results.ranks_me, results.ranks_llm, values, {})


def earlier_sizes(sizes: list[int]) -> list[int]:
    """The measured sizes closest to 1/2, 1/4, 1/8 and 1/16 of the largest, increasing."""
    wanted = [sizes[-1] / 2**k for k in range(1, MOST_SMALL_PANELS + 1)] if sizes else []
    nearest = {min(sizes[:-1], key=lambda size: abs(size - goal)) for goal in wanted if sizes[:-1]}
    return sorted(nearest)
