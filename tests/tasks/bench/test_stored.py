"""What this repository stores of RankBench, replayed with the methods that take no fit."""

from __future__ import annotations

import pandas as pd
import pytest

from mars_core.rankbench import verdicts
from mars_core.rankbench.blocks import blocks_of
from mars_core.rankbench.cells import CELLS, RATES, cell_named
from mars_core.rankbench.replay import Replay
from mars_core.rankbench.tables import tables_of
from mars_core.rankbench.truth import truth_of
from tasks.bench.replay import replay_bench
from tasks.bench.store import made_of, path_of, read_cell

CELL = cell_named("even-detail-512")


@pytest.fixture(scope="module")
def folder(request):
    return request.config.rootpath / "benchmarks" / "results" / "rankbench"


@pytest.fixture(scope="module")
def rows(folder):
    return read_cell(folder, CELL)


def test_every_stored_block_says_how_it_was_made_and_holds_all_its_runs(folder):
    for cell in CELLS:
        made = {}
        for block in blocks_of(cell):
            if path_of(folder, block).exists():
                one = made_of(folder, block)
                made[one.backbone, one.data] = one
                assert one.seconds > 0
        assert len(made) <= 1, f"{cell.name} was made with several backbones or data: {sorted(made)}"


def test_the_stored_cell_is_whole_and_small(folder, rows):
    assert verdicts.is_whole(CELL, rows, "constant")
    full = rows[(rows["kind"] == "rates") & (rows["rule"] == "constant") & (rows["step"] == rows["horizon"])]
    assert len(full) == len(CELL.pairs) * len(RATES)
    assert sum(path.stat().st_size for path in (folder / CELL.name).iterdir()) < 1_000_000


def test_rivals_are_replayed_from_it(rows):
    replay, truth = Replay(CELL, rows, "constant", (0,)), truth_of(rows, "constant")
    names = [name for name in verdicts.METHODS if not name.startswith("MARS")]
    records = pd.DataFrame([verdicts.record_of(replay, truth, name) for name in names])
    # a pair at a rate that is not its best may be better than the law of rates says, never than the best pair
    assert (records["regret"] > -1e-9).all()
    assert records["regret"].max() < 0.5


@pytest.mark.slow  # the choices of MARS take most of it
def test_every_table_is_printed_from_what_is_stored(folder):
    replayed = replay_bench(folder, (CELL,))
    titles = [table.title for table in tables_of(replayed.cells, replayed.records)]
    assert {"Cells", "Verdicts of MARS", "Predicted final loss", "Does balance help?"} <= set(titles)


def test_a_folder_without_a_whole_cell_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no whole cell of RankBench among even-detail-512: train one"):
        replay_bench(tmp_path, (CELL,))
