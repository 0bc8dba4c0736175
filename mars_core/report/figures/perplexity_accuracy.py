"""Perplexity against accuracy: one point per calibration run at its last checkpoint (paper, figure 9)."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mars_core.evaluation.correlation import Correlation, correlate, last_scores
from mars_core.report.figures import style
from mars_core.report.study_results import StudyResults

FEWEST = 3


def perplexity_accuracy_figure(results: StudyResults) -> Figure | None:
    """The scatter, vision ranks told apart by colour and marker; None where too few runs have both."""
    if correlation_of(results) is None:
        return None
    points = last_scores(results.metrics)
    figure = style.new_figure(3.4, width=6.0)
    (axes,) = style.panels(figure, 1)
    colours, markers = style.rank_colours(results.ranks_me), style.rank_markers(results.ranks_me)
    for rank in results.ranks_me:
        own = points[points["r_me"] == rank]
        axes.plot(
            own["perplexity"],
            own["accuracy"],
            linestyle="",
            marker=markers[rank],
            color=colours[rank],
            markersize=5,
            label=f"r_me = {rank}",
        )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    style.label(axes, x="validation perplexity", y="exact-match accuracy")
    axes.legend(frameon=False, fontsize=style.SMALL, labelcolor=style.INK)
    return figure


def correlation_of(results: StudyResults) -> Correlation | None:
    """The correlation over the calibration runs' last checkpoints; None where too few have both."""
    metrics = results.metrics
    if metrics.empty or "val_accuracy" not in metrics.columns:
        return None
    points = last_scores(metrics).dropna(subset=["accuracy"])
    return correlate(points) if len(points) >= FEWEST else None
