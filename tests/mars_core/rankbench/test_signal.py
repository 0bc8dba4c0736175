from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from mars_core.rankbench.signal import signal_of


def ends(effect_me: float, *, seeds: int = 4, noise: float = 0.01, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        {"r_me": a, "r_llm": b, "seed": s, "test_loss": 1.0 - effect_me * np.log1p(a) + 0.3 * s + noise * rng.normal()}
        for a in (0, 1, 4, 16)
        for b in (1, 4, 16)
        for s in range(seeds)
    ]
    return pd.DataFrame(rows)


def test_two_pairs_are_told_apart_as_by_a_paired_t_test():
    table = ends(0.01)
    two = table[table["r_me"].isin([1, 16]) & (table["r_llm"] == 4)]
    by_seed = two.pivot(index="seed", columns="r_me", values="test_loss")
    assert signal_of(two).p_value == pytest.approx(ttest_rel(by_seed[1], by_seed[16]).pvalue, rel=1e-9)


def test_a_level_that_seeds_share_is_no_noise_and_equal_pairs_are_no_signal():
    assert signal_of(ends(0.02)).tells_pairs_apart  # seeds differ by 0.3, pairs by 0.04, noise 0.01
    told = [signal_of(ends(0.0, seed=seed)).tells_pairs_apart for seed in range(30)]
    assert sum(told) <= 3  # 1% expected; more than 3 of 30 has probability 2e-4


def test_effects_are_ranges_of_means_in_standard_deviations_of_a_run():
    found = signal_of(ends(0.05, seeds=40))
    # ln 17 * 0.05 / 0.01, the error of a mean of 120 runs and of the deviation both below 10%
    assert found.vision == pytest.approx(14.2, rel=0.1)
    assert found.llm < 1.0


def test_one_seed_is_refused():
    with pytest.raises(ValueError, match="with 1 seeds do not tell a signal"):
        signal_of(ends(0.01, seeds=1))
