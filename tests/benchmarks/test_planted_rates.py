"""The planted studies whose learning rate matters: what they are made of, and one of them chosen in."""

from __future__ import annotations

import importlib
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_a_rate_costs_nothing_at_its_best_and_more_on_either_side(benchmark):
    study = benchmark("planted.rates").make_rate_study(3)
    for pair in study.study.pairs:
        best = study.rates.best[pair]
        assert study.rates.cost(pair, best) == pytest.approx(0.0, abs=1e-12)
        costs = [study.rates.cost(pair, best + z) for z in (-1.0, -0.5, 0.5, 1.0)]
        assert costs[0] > costs[1] > 0 < costs[2] < costs[3]
        assert costs[0] != pytest.approx(costs[3], rel=0.02)  # lopsided: no law of the library has it exactly


def test_one_rate_for_all_picks_wrong_in_every_study(benchmark):
    module = benchmark("planted_rates")
    for number, study in islice(module.studies(), 3):
        fixed = module.fixed_rate(study, number)
        pair = study.best_at(fixed, 2048)
        assert all(study.truth(pair, fixed, 2048) <= study.truth(other, fixed, 2048) for other in study.study.pairs)
        assert module.excess_of_pair(study, pair) > module.RIGHT


def test_runs_at_other_rates_have_their_own_luck_and_pay_what_their_rate_costs(benchmark):
    study = benchmark("planted.rates").make_rate_study(0)
    pair = study.study.pairs[0]
    rates = [float(np.exp(study.rates.best[pair] + z)) for z in (0.0, 1.0)]
    runs = study.metrics({pair: rates})
    assert runs["run_id"].nunique() == 2 * study.study.n_seeds
    ends = runs[runs["step"] == runs["step"].max()].groupby("peak_lr")["val_loss"].mean()
    paid = study.rates.cost(pair, float(np.log(rates[1])))
    assert ends[rates[1]] - ends[rates[0]] == pytest.approx(paid, abs=0.05)  # noise of up to 1% of the loss


def test_a_run_stays_as_it_is_whatever_else_is_trained(benchmark):
    """A calibration that goes on does not train its first runs anew."""
    study = benchmark("planted.rates").make_rate_study(0)
    one, other = study.study.pairs[:2]
    tried = {one: [1e-3], other: [1e-3, 2e-3]}
    wider = {one: [1e-3, 4e-3], other: [1e-3, 2e-3, 8e-3]}
    before, after = study.metrics(tried), study.metrics(wider, [(one, 7, 2e-3)])
    kept = after[after["run_id"].isin(before["run_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before)
    assert study.study.n_seeds + 1 == after["seed"].nunique()


def test_a_further_seed_has_the_noise_of_the_others(benchmark):
    """Each pair's mean over many seeds is its true loss, within three standard errors."""
    study = benchmark("planted.study").make_study(1)
    seeds = pd.concat([study.further_seed(seed) for seed in range(100, 160)])
    ends = np.log(seeds[seeds["step"] == seeds["step"].max()].set_index(["r_me", "r_llm"])["val_loss"])
    noise = study.noise
    spread = float(np.sqrt(noise.run**2 + noise.checkpoint**2 + noise.common**2))
    off = [ends[pair].mean() - np.log(study.truth(pair, 2048)) for pair in study.pairs]
    assert np.abs(off).max() < 3.5 * spread / np.sqrt(60)
    assert ends.groupby(level=[0, 1]).std().mean() == pytest.approx(spread, rel=0.15)


def test_a_study_that_needs_no_more_counts_at_every_larger_limit(benchmark):
    def after(*regrets):
        return {"rounds": [{"further": at, "regret": one, "inside": True} for at, one in enumerate(regrets)]}

    found = benchmark("planted_rates").by_budget([after(0.004), after(0.02, 0.008, 0.001)])
    assert [one["at_most"] for one in found] == [0, 1, 2, 4, 8]
    assert [one["right"] for one in found] == [0.5, 0.5, 1.0, 1.0, 1.0]
    assert [one["taken"] for one in found] == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert found[2]["mean_regret"] == pytest.approx(0.0025)


@pytest.mark.slow
def test_the_record_is_of_studies_in_which_a_fixed_rate_is_wrong(benchmark):
    module = benchmark("planted_rates")
    row = module.score(8, module.make_rate_study(8), 4)  # of 9 pairs
    assert row["fixed"] > module.RIGHT
    assert row["runs"] < 4 * row["pairs"]  # not a full grid of pairs and rates
    further = [one["further"] for one in row["rounds"]]
    assert further[0] == 0.0
    assert further == sorted(further)
    assert further[-1] <= 4.0
    assert row["rounds"][-1]["regret"] == row["mars_2048"]
    assert row["mars_2048"] < row["fixed"]
