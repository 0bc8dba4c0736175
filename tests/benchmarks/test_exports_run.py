"""The exports that were run in their real tools, and TRL's run anew where its environment is."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def exports_run(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("exports_run")


def test_what_ran_has_both_ranks_and_every_script_of_trl_trains_mars_tokens(exports_run):
    cells = json.loads(exports_run.RECORD.read_text(encoding="utf-8"))["cells"]
    assert {name.partition("/")[0] for name in cells} <= set(exports_run.PACKAGES)
    for name, cell in cells.items():
        assert cell["holds"] == all(cell.get(part) for part in ("ranks", "scale", "moved", "evaluates")), name
    of_trl = [cell for name, cell in cells.items() if name.startswith("trl/") and cell["holds"]]
    assert of_trl
    assert all(cell["equal"] for cell in of_trl)


@pytest.mark.slow
def test_trls_script_trains_the_pair(exports_run, monkeypatch, tmp_path):
    """`python benchmarks/exports_run.py install --only trl` makes the environment."""
    if not exports_run.python_of("trl").is_file():
        pytest.skip(f"TRL's environment is not in {exports_run.CACHE}: benchmarks/exports_run.py install --only trl")
    monkeypatch.chdir(tmp_path)
    cell = exports_run.run_cell("trl", "llava_onevision")
    assert cell["holds"], cell["shown"]
    assert cell["equal"]
