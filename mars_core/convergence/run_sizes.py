"""Whether a table holds one run per pair, read at many sizes, or a run for every size."""

import pandas as pd


def has_runs_per_size(metrics: pd.DataFrame) -> bool:
    """Whether some pair and seed has runs that end at different sizes D.

    Such runs were each made for their last size: their schedule ends there. What they show before it is the state of a
    longer schedule that is not over, which says nothing of a smaller size.

    Args:
        metrics: checkpoint metrics with run_id, r_me, r_llm, seed and unique_samples.
    """
    runs = metrics.groupby("run_id", sort=False).agg(
        r_me=("r_me", "first"), r_llm=("r_llm", "first"), seed=("seed", "first"), D=("unique_samples", "max")
    )
    return bool((runs.groupby(["r_me", "r_llm", "seed"])["D"].nunique() > 1).any())
