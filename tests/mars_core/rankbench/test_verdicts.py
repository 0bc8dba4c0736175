"""Replay on a cell whose true loss is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mars_core.rankbench import methods, verdicts
from mars_core.rankbench.cells import cell_named
from mars_core.rankbench.replay import Replay
from mars_core.rankbench.truth import truth_of
from tests.mars_core.rankbench.planted import BEST_RATE, planted_cell, true_loss

CELL = cell_named("even-detail-512")
RIVALS = {name: method for name, method in methods.METHODS.items() if not name.startswith("MARS")}


@pytest.fixture(scope="module")
def rows():
    return planted_cell(CELL, noise=0.003)


@pytest.fixture(scope="module")
def rivals(rows):
    replay, truth = Replay(CELL, rows, "constant", (0,)), truth_of(rows, "constant")
    return pd.DataFrame([verdicts.record_of(replay, truth, name) for name in RIVALS]).set_index("method")


def test_regret_is_that_of_the_planted_losses(rows):
    truth = truth_of(rows, "constant")
    assert truth.best == (16, 16)
    planted = np.expm1(true_loss(1, 16, 512, BEST_RATE) - true_loss(16, 16, 512, BEST_RATE))
    # two means of four runs with noise 0.003 each: a standard error of 0.002, three of them
    assert truth.regret((1, 16)) == pytest.approx(planted, abs=0.0065)
    assert truth.deviation == pytest.approx(0.003, rel=0.4)  # 57 degrees of freedom: 10% standard error
    # the law's own valley is not quite the planted one
    assert truth.best_rate(truth.best) == pytest.approx(BEST_RATE, rel=0.15)


def test_methods_pay_for_what_they_looked_at(rivals):
    cost = rivals["pair_steps"]
    assert cost["best cell of the same calibration"] == 20 * 4 * 16  # pairs, rates, steps of a calibration
    assert cost["uniform 8, rate tuned"] == 4 * 16
    assert cost["naive grid of full runs"] == 20 * 4 * 64
    assert cost["uniform 8, one rate"] == 0
    assert cost["successive halving of full runs"] == 80 * 8 + 40 * 8 + 20 * 16 + 10 * 32


def test_the_grid_finds_the_best_pair_and_small_ranks_do_not(rivals):
    assert rivals.loc["naive grid of full runs", "regret"] <= rivals.loc["uniform 4, rate tuned", "regret"]
    assert rivals.loc["frozen vision encoder, rate tuned", "regret"] > 0.1
    assert tuple(rivals.loc["main effects of the same calibration", ["r_me", "r_llm"]]) == (16, 16)


@pytest.mark.slow  # choose_ranks four times
def test_a_whole_job_gives_every_table(rows):
    (job, *_) = verdicts.jobs_of(CELL, rows)
    records = pd.DataFrame(verdicts.replay_job(job))
    assert set(verdicts.summary(verdicts.of_default(records)).index) == set(methods.METHODS)
    assert records.set_index("method").loc["MARS", "regret"] <= records["noise"].iloc[0]
    assert 0 <= verdicts.prediction_table(records)["covered"].iloc[0] <= 1
    assert verdicts.prediction_table(records)["tau"].iloc[0] > 0.8  # the planted order is law P's own
    assert verdicts.balance_table(records)["own_me"].iloc[0] == pytest.approx(0.3)  # as planted, without noise
    assert verdicts.ablation(records).loc["MARS", "difference"] == 0


def made_records() -> pd.DataFrame:
    """Two cells, two calibration seeds, MARS and the grid; regrets by hand."""
    regrets = {("a", 0): (0.0, 0.01), ("a", 1): (0.02, 0.01), ("b", 0): (0.04, 0.0), ("b", 1): (0.06, 0.0)}
    told = {("a", 0): "best", ("a", 1): "best", ("b", 0): "cannot tell", ("b", 1): "as good and cheaper"}
    rows = []
    for (cell, seed), pair in regrets.items():
        for method, regret, steps in zip(
            ("MARS", verdicts.GRID, verdicts.LARGEST), (*pair, 0.1), (10, 100, 5), strict=True
        ):
            row = {"cell": cell, "rule": "constant", "seed": seed, "method": method, "regret": regret, "noise": 0.015}
            row |= {"pair_steps": steps, "parameters": 50 if method == "MARS" else 100, "signal": True, "loss": 1.0}
            row |= {"least": 1.0, "seen_regret": 0.01, "excess_over_best": 0.01}
            rows.append(row | {"verdict": told[cell, seed] if method == "MARS" else None})
    return pd.DataFrame(rows)


def test_the_summary_is_the_arithmetic_of_its_records():
    line = verdicts.summary(made_records()).loc["MARS"]
    assert line["choices"] == 4
    assert line["mean_regret"] == pytest.approx(0.03)
    assert line["median_regret"] == pytest.approx(0.03)
    assert line["within_noise"] == pytest.approx(0.25)
    assert (line["cost"], line["size"]) == (pytest.approx(0.1), pytest.approx(0.5))
    assert 0.0 <= line["low"] < 0.03 < line["high"] <= 0.06  # no mean of drawn records lies outside of them


def test_a_verdict_is_right_where_what_it_promises_came_true():
    table = verdicts.verdict_table(made_records())
    assert table.loc["best", "right"] == pytest.approx(0.5)  # regrets 0 and 0.02 at noise 0.015
    assert table.loc["as good and cheaper", "right"] == 1.0  # excess 0.01 within margin and noise
    assert np.isnan(table.loc["cannot tell", "right"])


def test_the_ablation_compares_on_the_same_cells_and_seeds():
    table = verdicts.ablation(made_records(), ["MARS", verdicts.GRID])
    assert table.loc[verdicts.GRID, "difference"] == pytest.approx(0.005 - 0.03)


def test_a_cell_says_what_its_ranks_do(rows):
    (default, other) = verdicts.describe_cell(CELL, rows)
    assert (default["rule"], other["rule"]) == ("constant", "2r")
    assert default["tells_pairs_apart"]
    assert default["vision_matters"]
    assert default["interior"]
    assert default["judges"] == 4


def test_no_method_sees_runs_that_judge(rows):
    replay = Replay(CELL, rows[rows["kind"] != "judge"], "constant", (0,))
    for method in RIVALS.values():
        method(replay)
