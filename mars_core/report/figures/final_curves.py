"""Training and validation loss of the final fine-tunes: the chosen pair against the uniform default."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mars_core.report.figures import style
from mars_core.report.figures.ranges import log_span

HEIGHT = 3.3
LOOKS = {"chosen": (style.ACCENT, "o", "-"), "uniform": (style.LLM, "s", (0, (5, 2)))}
OTHER_LOOK = (style.MUTED, "D", ":")
PANELS = (("loss", "training loss, nats/token"), ("eval_loss", "validation loss, nats/token"))


def final_curves_figure(finals: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Two panels, training and validation loss; None where no final run logged anything."""
    if not any(history_of(final, key) for final in finals for key, _ in PANELS):
        return None
    figure = style.new_figure(HEIGHT)
    for (key, title), axes in zip(PANELS, figure.subplots(1, len(PANELS)), strict=True):
        style.dress(axes)
        for final in finals:
            _draw(axes, final, key)
        style.label(axes, title=title, x="optimizer step")
        losses = [loss for final in finals for _, loss in history_of(final, key)]
        style.log_value_axis(axes.yaxis, *log_span(losses))
    style.figure_legend(figure, *_legend(finals))
    return figure


def history_of(final: Mapping[str, Any], key: str) -> list[tuple[int, float]]:
    """(step, value) of the log entries that hold `key`, without values that are not finite."""
    entries = [entry for entry in final.get("history") or () if key in entry and "step" in entry]
    pairs = [(int(entry["step"]), float(entry[key])) for entry in entries]
    return [(step, value) for step, value in pairs if math.isfinite(value) and value > 0]


def _draw(axes: Any, final: Mapping[str, Any], key: str) -> None:
    points = history_of(final, key)
    if not points:
        return
    colour, marker, dashes = LOOKS.get(str(final.get("role")), OTHER_LOOK)
    steps, losses = zip(*points, strict=True)
    is_eval = key == "eval_loss"
    axes.plot(
        steps, losses, color=colour, linestyle=dashes, linewidth=1.5, marker=marker if is_eval else "", markersize=4
    )
    best = dict(points).get(int(final.get("best_step") or -1))
    if is_eval and best is not None:
        axes.plot(
            [int(final["best_step"])], [best], marker="o", markersize=11, markerfacecolor="none", markeredgecolor=colour
        )


def _legend(finals: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[str]]:
    handles: list[Any] = []
    labels = []
    for final in finals:
        colour, marker, dashes = LOOKS.get(str(final.get("role")), OTHER_LOOK)
        handles.append(Line2D([], [], color=colour, linestyle=dashes, marker=marker, markersize=4))
        r_me, r_llm = final["pair"]
        labels.append(f"{final.get('role', 'final run')} ({r_me}, {r_llm})")
    handles.append(Line2D([], [], linestyle="", marker="o", markerfacecolor="none", markersize=9, color=style.MUTED))
    labels.append("checkpoint kept")
    return handles, labels
