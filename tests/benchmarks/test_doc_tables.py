"""The tables that benchmarks write into the docs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from mars_core.models.families import FAMILIES
from tasks.settings.study import read_study

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "docs" / "studies").glob("*.yaml"))


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a benchmark by name, as its own folder does."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@pytest.mark.parametrize(
    "name", ["data_plan", "exports_run", "forgetting", "model_families", "planner_estimates", "rank_and_rate"]
)
def test_the_table_in_the_docs_is_the_recorded_one(benchmark, name):
    module = benchmark(name)
    page = module.PAGE.read_text(encoding="utf-8")
    record = json.loads(module.RECORD.read_text(encoding="utf-8"))
    assert benchmark("doc_table").with_table(page, module.MARK, module.table(record)) == page


def test_score_intervals_of_the_data_plan_hold_on_runs_made_apart(benchmark):
    """At least 20 separate runs, and no kind with 20 predictions below 90% of its 95% intervals."""
    record = json.loads(benchmark("data_plan").RECORD.read_text(encoding="utf-8"))
    assert sum(one["runs"] for one in record["summary"]) >= 20
    enough = [one for one in record["summary"] if one["predictions"] >= 20]
    assert [one["kind"] for one in enough if one["inside"] < 0.9 * one["predictions"]] == []
    assert {one["kind"] for one in record["summary"]} - {one["kind"] for one in enough} == {"planned size, validation"}


def test_every_planned_size_of_the_record_was_trained(benchmark):
    record = json.loads(benchmark("data_plan").RECORD.read_text(encoding="utf-8"))
    rows = [row for row in record["rows"] if row["kind"] == "planned size, validation"]
    shown = [(row["seed"], row["target"], row["size"], row["reached"]) for row in rows]
    assert shown == [(run["seed"], run["target"], run["size"], round(run["score"], 2)) for run in record["trained"]]
    assert len({run["loss"] for run in record["trained"]}) == len(rows) > 0


def test_every_way_of_tuning_was_asked_what_it_forgets(benchmark):
    module = benchmark("forgetting")
    assert set(json.loads(module.RECORD.read_text(encoding="utf-8"))["methods"]) == set(module.METHODS)


def test_every_family_was_measured_and_everything_held(benchmark):
    module = benchmark("model_families")
    record = json.loads(module.RECORD.read_text(encoding="utf-8"))["families"]
    assert set(record) == set(module.subjects())
    own = {name: record[name] for name in (*FAMILIES, module.DESCRIBED_NAME)}
    assert all(cell["holds"] for cells in own.values() for cell in cells.values())


def test_at_least_45_types_hold_and_every_other_has_its_reason(benchmark):
    module = benchmark("model_families")
    record = json.loads(module.RECORD.read_text(encoding="utf-8"))["families"]
    measured = {name: cells for name, cells in record.items() if "reason" not in cells}
    assert sum(all(cell["holds"] for cell in cells.values()) for cells in measured.values()) >= 45
    assert all(set(cells) == set(module.CAPABILITIES) for cells in measured.values())
    assert all(cells["reason"].strip() for name, cells in record.items() if name not in measured)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, "described in YAML"])
def test_everything_holds_for_every_family_now(benchmark, tmp_path, family):
    cells = benchmark("model_families").measure_family(family, tmp_path)
    assert {name: cell["shown"] for name, cell in cells.items() if not cell["holds"]} == {}


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_studies_in_the_docs_are_studies_and_stand_in_the_page_as_they_are(file):
    assert read_study(file).final.epochs == 3
    page = (ROOT / "docs" / "from-my-dataset-to-an-adapter.md").read_text(encoding="utf-8")
    assert file.read_text(encoding="utf-8").partition("\n")[2] in page


def test_a_page_without_a_place_for_the_table_is_refused(benchmark):
    with pytest.raises(ValueError, match="no place for the table: put <!-- x: begin --> and <!-- x: end -->"):
        benchmark("doc_table").with_table("text", "x", "| a |")
