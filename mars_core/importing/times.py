"""Convergence times that the caller measured, as the table that law C is fitted to."""

from __future__ import annotations

import pandas as pd

from mars_core.convergence import NoConvergenceTimes

COLUMNS = ["module", "r", "D", "S_D", "steps", "censored", "run_id", "r_me", "r_llm", "seed", "target"]


def given_times(times: pd.DataFrame, reference: tuple[int, int]) -> pd.DataFrame:
    """One row per module, run and size, as `convergence_times` gives.

    Args:
        times: rows of `ImportedRuns.times`. A module's own column (`t_me`, `t_llm`) is taken from every row; `t`, the
            time of a whole run, speaks for a module where the other one's rank is the reference's (the paper's slices).
        reference: pair at which the slices cross.

    Raises:
        NoConvergenceTimes: no row speaks for any module.
    """
    on_slice = {"me": times["r_llm"] == reference[1], "llm": times["r_me"] == reference[0]}
    found = []
    for module, own in (("me", "t_me"), ("llm", "t_llm")):
        steps = times[own].fillna(times["t"].where(on_slice[module]))
        rows = times.assign(module=module, r=times[f"r_{module}"], S_D=times["step"], steps=steps, target=None)
        found.append(rows.loc[steps.notna(), COLUMNS])
    table = pd.concat(found, ignore_index=True)
    if table.empty:
        raise NoConvergenceTimes(
            f"none of the given times lies on a slice through the reference pair {reference}: give t_me and t_llm, or "
            "another --reference"
        )
    return table
