"""Which checkpoints are points of law P where every size has runs of its own."""

from __future__ import annotations

import pandas as pd

from mars_core.convergence import has_runs_per_size


def run_ends(metrics: pd.DataFrame) -> pd.DataFrame:
    """The last row of each run where some pair and seed has runs of several sizes, else the table as it is.

    A run that was made for one size is annealed at its end alone. Where a pair and seed has one run, all sizes are read
    off that run, so every checkpoint counts. Rows keep their order and index.

    Args:
        metrics: checkpoint metrics, one row per (run_id, step), with r_me, r_llm, seed and unique_samples.
    """
    if not has_runs_per_size(metrics):
        return metrics
    return metrics[metrics["step"] == metrics.groupby("run_id")["step"].transform("max")]
