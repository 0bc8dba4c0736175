"""Plots are written for every law that has inputs to plot, censored points included."""

import numpy as np
import pandas as pd

from mars_core.fitting import fit_law
from mars_core.fitting.plots import plot_fit, plot_residuals, save_plots
from mars_core.fitting.table import read_table
from mars_core.laws import get_law


def test_four_pictures_are_written(tmp_path):
    table = pd.DataFrame([(r, D) for r in (4, 8, 16) for D in 2.0 ** np.arange(6, 12)], columns=["r", "D"])
    table["steps"] = get_law("convergence").predict([2.0, -0.25, 0.8, 10.0], table)
    table["censored"] = table.index == 3
    files = save_plots(fit_law("convergence", table, n_starts=8, n_bootstrap=5), table, tmp_path / "plots")
    assert [file.name for file in files] == ["fit.png", "residuals.png", "profiles.png", "bootstrap.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 5000 for file in files)


def test_a_law_of_size_alone_can_be_drawn():
    """One line over the size, and no other input to draw residuals over."""
    table = pd.DataFrame({"D": 2.0 ** np.arange(6, 14)})
    table["loss"] = get_law("performance_no_rank").predict([5.0, 0.3, 1.0], table)
    law = get_law("performance_no_rank")
    fit, points = fit_law(law, table, n_starts=8, n_bootstrap=5), read_table(law, table, None)
    _, over_size = plot_fit(fit, points).axes
    assert len(over_size.get_lines()) == 2  # the law, and where the points end
    assert len(plot_residuals(fit, points).axes) == 1
