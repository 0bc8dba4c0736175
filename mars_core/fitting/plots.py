"""Plots of one fit: fit, residuals, profiles and bootstrap cloud. Drawn without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mars_core.fitting.result import LawFit
from mars_core.fitting.table import Table, read_table
from mars_core.laws import get_law
from mars_core.laws.law import Floats, Law

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"


def save_plots(fit: LawFit, points: Any, folder: Path) -> tuple[Path, ...]:
    """Write fit.png, residuals.png, profiles.png and bootstrap.png into `folder`.

    Args:
        fit: the fit.
        points: the table it was fitted to.
        folder: made if it does not exist.

    Returns:
        The files written.
    """
    table = read_table(get_law(fit.law), points, fit.grouped_by if fit.grouped_by != "row" else None)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "fit.png": plot_fit(fit, table),
        "residuals.png": plot_residuals(fit, table),
        "profiles.png": plot_profiles(fit),
        "bootstrap.png": plot_bootstrap(fit),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=130)
    return tuple(folder / name for name in figures)


def plot_fit(fit: LawFit, table: Table) -> Figure:
    """Observed against predicted, and one line per setting of the other inputs over size."""
    law = get_law(fit.law)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _observed_against_predicted(left, fit, table, law)
    _target_over_size(right, fit, table, law)
    figure.suptitle(f"{law.title}: {law.equation}", fontsize=10)
    return figure


def plot_residuals(fit: LawFit, table: Table) -> Figure:
    """Log residuals against every input; a trend means that the form is wrong there."""
    law = get_law(fit.law)
    residual = np.log(table.y / fit.predict(table.inputs))
    figure = Figure(figsize=(3.7 * len(law.inputs), 3.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(law.inputs), sharey=True))
    for axis, column in zip(axes, law.inputs, strict=True):
        values = table.inputs[column]
        axis.axhline(0.0, color=GREY, linewidth=0.8)
        axis.scatter(values, 100 * residual, s=14, color=BLUE, alpha=0.5, label="point")
        _mark_censored(axis, values, 100 * residual, table)
        axis.set(xscale="log", xlabel=f"{column}: {law.units[column]}")
        if column != law.size_column:
            _label_levels(axis, values)
    axes[0].set_ylabel(f"ln(observed / predicted {law.target}), %")
    return figure


def plot_profiles(fit: LawFit) -> Figure:
    """Best objective with one coefficient held fixed, relative to the optimum; flat means undetermined."""
    n_profiles = len(fit.profiles)
    figure = Figure(figsize=(3.2 * n_profiles, 3.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, n_profiles))
    for axis, profile in zip(axes, fit.profiles, strict=True):
        rise = np.array(profile.objectives) / max(fit.objective, 1e-300) - 1.0
        axis.plot(profile.values, 100 * np.maximum(rise, 0.0), color=BLUE)
        axis.axvline(fit.coefficients[profile.symbol], color=ORANGE, linewidth=1.2)
        axis.axvspan(*fit.intervals[profile.symbol], color=ORANGE, alpha=0.15)
        axis.set_xlabel(profile.symbol)
    axes[0].set_ylabel("objective above its optimum, %")
    figure.suptitle(f"line: estimate; band: {fit.level:.0%} interval", fontsize=9)
    return figure


def plot_bootstrap(fit: LawFit) -> Figure:
    """Every pair of coefficients over the bootstrap draws; a thin slanted cloud means that they trade off."""
    law = get_law(fit.law)
    n_params = law.n_params
    figure = Figure(figsize=(2.1 * n_params, 2.1 * n_params), layout="constrained")
    axes = figure.subplots(n_params, n_params, squeeze=False)
    for row in range(n_params):
        for column in range(n_params):
            _cloud_panel(axes[row][column], fit, law, row, column)
    return figure


def _cloud_panel(axis: Axes, fit: LawFit, law: Law, row: int, column: int) -> None:
    if column > row:
        axis.set_axis_off()
        return
    if column == row:
        axis.hist(fit.draws[:, row], bins=30, color=BLUE, alpha=0.7)
        axis.axvline(fit.theta[row], color=ORANGE)
        axis.set_yticks([])
    else:
        axis.scatter(fit.draws[:, column], fit.draws[:, row], s=3, color=BLUE, alpha=0.3)
        axis.plot(fit.theta[column], fit.theta[row], "o", color=ORANGE, markersize=4)
    axis.tick_params(labelsize=6)
    if row == law.n_params - 1:
        axis.set_xlabel(law.symbols[column])
    if column == 0:
        axis.set_ylabel(law.symbols[row])


def _observed_against_predicted(axis: Axes, fit: LawFit, table: Table, law: Law) -> None:
    predicted = fit.predict(table.inputs)
    axis.scatter(predicted, table.y, s=14, color=BLUE, alpha=0.5, label="point")
    _mark_censored(axis, predicted, table.y, table)
    ends = [min(predicted.min(), table.y.min()), max(predicted.max(), table.y.max())]
    axis.plot(ends, ends, color=GREY, linewidth=0.8)
    scale = _scale(np.concatenate([predicted, table.y]))
    axis.set(xscale=scale, yscale=scale, xlabel=f"predicted {law.target}", ylabel=f"observed {law.target}")
    axis.legend(fontsize=8)


def _target_over_size(axis: Axes, fit: LawFit, table: Table, law: Law) -> None:
    """Points over size, and the law along it for the lowest, middle and highest other inputs."""
    size = table.inputs[law.size_column]
    axis.scatter(size, table.y, s=10, color=GREY, alpha=0.4)
    along = np.geomspace(size.min(), 4 * size.max(), 100)
    others = [column for column in law.inputs if column != law.size_column]
    for share, colour in ((0.0, BLUE), (0.5, "#009e73"), (1.0, ORANGE)):
        fixed = {column: _level(table.inputs[column], share) for column in others}
        X = {**{column: np.full_like(along, value) for column, value in fixed.items()}, law.size_column: along}
        low, high = fit.predict_interval(X)
        label = ", ".join(f"{column} = {value:g}" for column, value in fixed.items()) or "law"
        axis.plot(along, fit.predict(X), color=colour, label=label)
        axis.fill_between(along, low, high, color=colour, alpha=0.15, linewidth=0)
        if not others:
            break
    axis.axvline(size.max(), color=GREY, linestyle=":", linewidth=0.8)
    axis.set(xscale="log", yscale=_scale(table.y), xlabel=f"{law.size_column}: {law.units[law.size_column]}")
    axis.set_ylabel(f"{law.target}: {law.units[law.target]}")
    axis.legend(fontsize=8, title="beyond the dotted line: extrapolated", title_fontsize=7)


def _scale(values: Floats) -> str:
    """Logarithmic axes from one decade on; below that their ticks are hard to read."""
    return "log" if values.max() > 10 * values.min() else "linear"


def _label_levels(axis: Axes, values: Floats) -> None:
    """A tick per rank where there are few of them."""
    levels = np.unique(values)
    if len(levels) <= 10:
        axis.set_xticks(levels, [f"{level:g}" for level in levels])
        axis.minorticks_off()


def _level(values: Floats, share: float) -> float:
    levels = np.unique(values)
    return float(levels[round(share * (len(levels) - 1))])


def _mark_censored(axis: Axes, x: Floats, y: Floats, table: Table) -> None:
    if table.censored.any():
        at = table.censored
        axis.scatter(x[at], y[at], s=24, marker="^", color=ORANGE, label="censored: true value is larger")
