from __future__ import annotations

import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.cli import bench
from flows.cli.main import app
from tasks.bench.replay import Replayed
from tests.mars_core.rankbench.planted import planted_cell

run = CliRunner().invoke


def test_the_list_says_what_each_cell_is_for_and_what_is_stored(tmp_path):
    result = run(app, ["bench", "list", "--folder", str(tmp_path)])
    assert result.exit_code == 0
    assert "even-detail-512: develop, 20 pairs, 0 of" in result.stdout
    assert "even-detail-512-64pairs: develop, 68 pairs, 0 of 5 blocks stored" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replay", "--role", "some"], "--role is develop, verdict or all, got 'some'"),
        (["replay", "--cell", "x"], "RankBench has no cell 'x'"),
        (["run", "--shard", "3/2"], "--shard is I/N with 1 <= I <= N"),
        (["replay"], "holds no whole cell of RankBench"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, arguments, message):
    result = run(app, ["bench", *arguments, "--folder", str(tmp_path)])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_the_page_holds_the_frontier_the_heatmaps_and_the_tables(tmp_path, monkeypatch):
    rows = planted_cell(bench._cells(["even-detail-512"])[0])
    common = {
        "cell": "even-detail-512",
        "role": "develop",
        "rule": "constant",
        "seed": 0,
        "noise": 0.01,
        "signal": True,
    }
    common |= {"pair_steps": 10, "parameters": 100, "loss": 0.5, "least": 0.5, "seen_regret": 0.0, "covered": 0.9}
    common |= {"excess_over_best": 0.0, "predicted": 0.5, "reached": 0.5, "tau": 0.5, "regret": 0.01}
    names = {"MARS": (8, 4), "naive grid of full runs": (16, 16), "largest, rate tuned": (16, 16)}
    records = pd.DataFrame(
        [common | {"method": n, "r_me": a, "r_llm": b, "verdict": "best"} for n, (a, b) in names.items()]
    )
    from mars_core.rankbench.verdicts import describe_cell

    cells = pd.DataFrame(describe_cell(bench._cells(["even-detail-512"])[0], rows))
    monkeypatch.setattr(bench, "_replayed", lambda *_: Replayed(cells, records, {"even-detail-512": rows}))
    result = run(app, ["bench", "report", "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    for expected in ("naive grid of full runs", "even-detail-512", "Verdicts of MARS", "Predicted final loss"):
        assert expected in page
