"""Final validation perplexity over the peak learning rate: a panel for each LLM rank, a line for each vision rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mars_core.report.figures import style
from mars_core.report.figures.ranges import log_span
from mars_core.report.study_results import StudyResults


def rate_curves_figure(results: StudyResults) -> Figure | None:
    """Means over seeds at the largest size, the chosen pair's best rate marked; None where the runs have one rate."""
    if results.choice is None or results.choice.rates is None:
        return None
    ends = _ends(results.all_runs)
    ranks_llm, ranks_me = (sorted(set(ends[name])) for name in ("r_llm", "r_me"))
    figure = style.new_figure(2.9 if len(ranks_llm) <= 4 else 5.2)
    colours, markers = style.rank_colours(ranks_me), style.rank_markers(ranks_me)
    handles: dict[str, Any] = {}
    low, high = log_span(ends["rate"])
    for axes, r_llm in zip(style.panels(figure, len(ranks_llm)), ranks_llm, strict=True):
        for r_me in ranks_me:
            own = ends[(ends["r_llm"] == r_llm) & (ends["r_me"] == r_me)].sort_values("rate")
            if own.empty:
                continue
            (line,) = axes.plot(
                own["rate"], own["perplexity"], color=colours[r_me], marker=markers[r_me], markersize=4, linewidth=1.2
            )
            handles.setdefault(f"r_me = {r_me}", line)
        _mark_best(axes, results, r_llm)
        style.log_value_axis(axes.xaxis, low, high, most=4)
        axes.set_yscale("log")
        style.log_value_axis(axes.yaxis, *log_span(ends["perplexity"]))
        axes.tick_params(axis="x", labelrotation=30)
        style.label(axes, title=f"r_llm = {r_llm}", x="peak learning rate")
    style.label(figure.axes[0], y="validation perplexity")
    style.figure_legend(figure, list(handles.values()), list(handles))
    return figure


def _ends(runs: pd.DataFrame) -> pd.DataFrame:
    """Perplexity of each pair and rate at the largest size, mean over seeds.

    The rate is the LLM's where that varies, else the vision encoder's; of several rates of the other, the best counts.
    """
    last = runs[runs["unique_samples"] == runs["unique_samples"].max()]
    last = last[last["step"] == last.groupby("run_id")["step"].transform("max")]
    main, other = ("peak_lr_llm", "peak_lr_me") if last["peak_lr_llm"].nunique() > 1 else ("peak_lr_me", "peak_lr_llm")
    alone = last["r_llm" if main == "peak_lr_llm" else "r_me"] == 0
    rated = last.assign(rate=np.where(alone, last[other], last[main]), other=last[other])
    means = rated.groupby(["r_me", "r_llm", "rate", "other"], as_index=False)["val_loss"].mean()
    best: pd.DataFrame = means.groupby(["r_me", "r_llm", "rate"], as_index=False)["val_loss"].min()
    return best.assign(perplexity=np.exp(best["val_loss"]))


def _mark_best(axes: Any, results: StudyResults, r_llm: int) -> None:
    choice = results.choice
    if choice is None or choice.rates is None or choice.pair[1] != r_llm:
        return
    axes.axvline(choice.rates.chosen[-1].rate, color=style.ACCENT, linewidth=1.0, linestyle=(0, (4, 3)))
