"""Predicted target loss against measured upstream loss, one point per rank pair, with the Pareto front."""

from __future__ import annotations

from matplotlib.figure import Figure

from mars_core.report.data import ReportData
from mars_core.report.figures import style


def forgetting_front_figure(data: ReportData) -> Figure | None:
    """The trade-off; None where pairs were not scored on upstream tasks."""
    if data.tradeoffs is None:
        return None
    pairs = data.tradeoffs["pairs"]
    front = sorted((one for one in pairs if one["on_front"]), key=lambda one: float(one["target"]))
    figure = style.new_figure(3.6, width=6.0)
    (axes,) = style.panels(figure, 1)
    axes.axhline(data.tradeoffs["base_loss"], color=style.MUTED, linewidth=0.8, linestyle="--", label="base model")
    axes.plot(
        [one["target"] for one in pairs], [one["upstream"] for one in pairs], "o", color=style.MUTED, markersize=4
    )
    axes.plot(
        [one["target"] for one in front],
        [one["upstream"] for one in front],
        "o-",
        color=style.ACCENT,
        markersize=5,
        linewidth=1.2,
        label="no pair is better in both",
    )
    for one in pairs:
        axes.annotate(
            f"({one['pair'][0]}, {one['pair'][1]})",
            (one["target"], one["upstream"]),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=style.SMALL,
            color=style.INK,
        )
    style.label(axes, x="predicted loss on the target task", y="loss on the upstream tasks")
    axes.legend(frameon=False, fontsize=style.SMALL, labelcolor=style.INK)
    return figure
