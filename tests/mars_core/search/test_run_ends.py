"""Points of law P where every size has runs of its own."""

import pandas as pd

from mars_core.search.run_ends import run_ends


def runs(*made) -> pd.DataFrame:
    """Rows of runs (run_id, pair, seed, last step); a step sees two samples."""
    rows = [
        {"run_id": run_id, "step": step, "unique_samples": 2 * step, "r_me": pair[0], "r_llm": pair[1], "seed": seed}
        for run_id, pair, seed, last in made
        for step in range(1, last + 1)
    ]
    return pd.DataFrame(rows)


def test_a_table_of_one_run_per_pair_and_seed_stays_as_it_is():
    metrics = runs(("a", (2, 2), 0, 4), ("b", (2, 4), 0, 4), ("c", (2, 2), 1, 4), ("d", (4, 4), 0, 3))
    assert run_ends(metrics) is metrics


def test_only_the_end_of_a_run_counts_where_a_pair_has_runs_of_several_sizes():
    metrics = runs(("a4", (2, 2), 0, 4), ("b2", (2, 4), 0, 2), ("a2", (2, 2), 0, 2), ("b4", (2, 4), 0, 4))
    shuffled = metrics.sample(frac=1, random_state=0)
    for table in (metrics, shuffled):
        ends = run_ends(table)
        assert dict(zip(ends["run_id"], ends["step"], strict=True)) == {"a4": 4, "b2": 2, "a2": 2, "b4": 4}
        assert len(ends) == 4
        assert ends.index.is_unique
        pd.testing.assert_frame_equal(ends, table.loc[ends.index])
