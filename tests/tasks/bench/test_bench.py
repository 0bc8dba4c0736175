"""A small RankBench cell from its backbone to the table of methods; the demo's backbone stands in for a new one."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from mars_core.demo import demo_backbone_path
from mars_core.rankbench import blocks, cells, data, train
from mars_core.rankbench.blocks import Block, blocks_of
from mars_core.rankbench.cells import Cell
from mars_core.rankbench.methods import METHODS
from mars_core.rankbench.truth import truth_of
from mars_core.rankbench.verdicts import describe_cell, jobs_of, replay_job, summary
from tasks.bench import run
from tasks.bench.store import made_of, missing_blocks, read_cell

CELL = Cell("even", "attribute", 128, "develop", (4, 8, 16))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cell of 16-step runs, trained whole, but stopped once on the way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SIZES", {"train": 128, "validation": 16, "test": 16})
        patch.setattr(train, "FIRST_CHECKPOINT", 1)
        patch.setattr(blocks, "RATES", (2.5e-3, 5e-3, 1e-2))
        patch.setattr(cells, "CELLS", (CELL,))
        patch.setattr(
            run, "make_backbone", lambda _, out, __: shutil.copytree(demo_backbone_path(), out, dirs_exist_ok=True)
        )
        out = tmp_path_factory.mktemp("bench")
        said = []
        assert run.run_bench(out, (CELL,), 0.0, said.append) <= 1  # no time: at most the first block
        run.run_bench(out, (CELL,), 60.0, said.append)
        yield out


@pytest.fixture(scope="module")
def rows(folder):
    return read_cell(folder, CELL)


def test_every_block_is_stored_with_how_it_was_made(folder):
    assert not list(missing_blocks(folder, (CELL,)))
    made = [made_of(folder, block) for block in blocks_of(CELL)]
    assert len({(one.backbone, one.data) for one in made}) == 1
    assert all(one.seconds > 0 and one.date for one in made)


def test_runs_that_judge_have_test_losses_and_the_first_of_them_rewind_times(rows):
    judged = rows[(rows["kind"] == "judge") & (rows["step"] == rows["horizon"])]
    assert judged["test_loss"].notna().all()
    assert judged.loc[(judged["r_me"] == 0) | (judged["seed"] != 10), "rewind_me"].isna().all()
    known = judged.loc[judged["r_llm"] > 0, "rewind_llm"].dropna()
    assert len(known) > 0
    assert known.between(0, 16).all()


def test_truth_is_the_mean_over_the_runs_that_judge(rows):
    truth = truth_of(rows, "2r")
    own = rows[(rows["kind"] == "judge") & (rows["rule"] == "2r") & (rows["step"] == rows["horizon"])]
    mean = own[(own["r_me"] == 4) & (own["r_llm"] == 16)]["test_loss"].mean()
    assert truth.loss((4, 16)) == pytest.approx(mean, rel=1e-6)
    assert truth.regret(truth.best) == 0.0
    assert truth.regret(truth.best, truth.best_rate(truth.best)) == pytest.approx(0.0, abs=1e-9)
    assert truth.regret(truth.best, 8 * truth.best_rate(truth.best)) > 0


def test_every_method_chooses_a_pair_and_is_told_its_regret_and_cost(rows):
    found = pd.DataFrame([record for job in jobs_of(CELL, rows) for record in replay_job(job)])
    assert len(found) == len(METHODS) * 3  # two calibration seeds under one alpha rule, one under the other
    assert (found["regret"] >= -1e-9).all()
    table = summary(found)
    assert set(table.index) == set(METHODS)
    assert table.loc["naive grid of full runs", "cost"] == 1.0
    assert np.isfinite(table["mean_regret"]).all()
    described = describe_cell(CELL, rows)
    assert [one["rule"] for one in described] == ["constant", "2r"]


def test_a_cell_of_another_backbone_is_refused(folder, monkeypatch):
    block = Block(CELL, "rates", "constant", 0)
    monkeypatch.setattr(run, "missing_blocks", lambda *_: [block])
    monkeypatch.setattr(run, "weights_digest", lambda _: "another")
    with pytest.raises(ValueError, match=r"was made with backbone .* use the package versions"):
        run.run_bench(folder, (CELL,), 60.0, lambda _: None)
