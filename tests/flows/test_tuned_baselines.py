"""`mars compare --tune-lr` on a small study: short runs of equal number and length, the final run at the best rate."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from tasks.calibration.hours import revision_hours
from tasks.final import rate_search
from tasks.storage.folder import Revision
from tasks.tracking.runs import tracking_uri

RATES = (5e-4, 1e-3)
TUNED = ["uniform-4", "rslora-2"]


def compare(study: Path, names: list[str], *options: str):
    given = [word for name in names for word in ("--with", name)]
    return CliRunner().invoke(app, ["compare", str(study), *given, "--tune-lr", *options])


def rows_of(result) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads(result.stdout[result.stdout.index("[\n") :])}


@pytest.mark.slow
def test_each_baseline_is_trained_at_its_best_rate_and_one_that_diverges_stops_no_other(copied, tmp_path, monkeypatch):
    run = rate_search._run
    monkeypatch.setattr(
        rate_search, "_run", lambda config, own, *rest: None if own.name == "full-rank" else run(config, own, *rest)
    )
    study, revision = tmp_path / "study.yaml", Revision(Path(copied.study), 1)
    hours = revision_hours(revision)["cpu_hours"]
    rates = ",".join(f"{rate:g}" for rate in RATES)
    result = compare(study, ["uniform-4", "full-rank", "rslora-2"], "--rates", rates, "--json")
    assert result.exit_code == 2
    assert "baseline full-rank: every short run diverged, at learning rates 0.0005, 0.001" in result.output
    rows = rows_of(result)
    assert list(rows) == ["base model", "MARS", "uniform-4-tuned", "rslora-2-tuned"]
    # The calibration: four pairs of eight steps. Each baseline: as many steps for each of two rates.
    assert {name: row["search"]["pair_steps"] for name, row in rows.items() if "search" in row} == {
        "MARS": 32, "uniform-4-tuned": 16, "rslora-2-tuned": 16,
    }  # fmt: skip
    for name in ("uniform-4-tuned", "rslora-2-tuned"):
        found = json.loads(revision.path("final", name, "rate_search.json").read_text())
        assert [run["learning_rate"] for run in found["runs"]] == list(RATES)
        assert RATES[0] <= found["learning_rate"] <= RATES[1]
        assert found["learning_rates"] == [found["learning_rate"]] * 3 == rows[name]["learning_rates"]
        assert rows[name]["search"] == found["cost"]
        assert found["cost"]["runs"] == 2
        assert found["cost"]["seconds"] > 0
        losses = {run["learning_rate"]: run["loss"] for run in found["runs"]}
        assert abs(found["learning_rate"] / min(losses, key=losses.get) - 1) < 0.5
    # A pair's short runs are calibration runs: the one at the recipe's rate was there.
    assert len(list(revision.path("calibration").glob("*.parquet"))) == 5
    shorts = [json.loads(path.read_text()) for path in revision.path("final", "rslora-2-tuned", "rates").glob("*.json")]
    assert sorted((short["learning_rate"], short["steps"]) for short in shorts) == [(rate, 8) for rate in RATES]
    assert revision_hours(revision)["cpu_hours"] > hours
    training = json.loads(revision.path("final", "rslora-2-tuned", "training.json").read_text())
    peak = max(entry.get("learning_rate", 0) for entry in training["history"])
    assert 0.5 * rows["rslora-2-tuned"]["learning_rates"][2] < peak <= rows["rslora-2-tuned"]["learning_rates"][2]
    assert not list(revision.path("final").glob("*/checkpoints-*"))
    report = revision.path("report.html").read_text()
    assert "search for it" in report
    assert "2 runs, 16 steps" in report
    client = mlflow.MlflowClient(tracking_uri(Path(copied.study)))
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, "tags.`mars.kind` = 'study'")
    (parent,) = [run for run in found if "search_runs_MARS" in run.data.metrics]
    assert parent.data.metrics["search_pair_steps_rslora-2-tuned"] == 16
    assert parent.data.metrics["learning_rate_rslora-2-tuned"] == rows["rslora-2-tuned"]["learning_rates"][2]

    monkeypatch.setattr(rate_search, "_run", lambda *_: pytest.fail("a short run that is done is trained again"))
    before = {path: path.stat().st_mtime_ns for path in revision.path("final").rglob("*") if path.is_file()}
    again = compare(study, TUNED, "--rates", rates)
    assert again.exit_code == 0, again.output
    shown = [line.replace("│", " ").split() for line in again.output.splitlines()]
    rate = f"{rows['rslora-2-tuned']['learning_rates'][2]:g}"
    assert ["rslora-2-tuned", rate, "2", "16"] in [line[:4] for line in shown]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # A search that was not brought to its end takes the runs that are done.
    revision.manifest("rate-rslora-2-tuned").unlink()
    assert compare(study, ["rslora-2"], "--rates", rates).exit_code == 0

    plain = CliRunner().invoke(app, ["compare", str(study), "--with", "pair-4-4", "--json"])
    assert plain.exit_code == 0, plain.output
    assert list(rows_of(plain)) == [*rows, "pair-4-4"]  # tuned ones stay in the table
    assert rows_of(plain)["rslora-2-tuned"] == rows["rslora-2-tuned"]
    assert rows_of(plain)["pair-4-4"]["search"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rates", "1e-4,2e-4"], "--rates are the learning rates that --tune-lr tries: add --tune-lr"),
        (["--tune-lr", "--rates", "auto"], "--rates is at least two learning rates"),
    ],
)
def test_rates_that_cannot_be_tried_are_refused(study, options, message):
    result = CliRunner().invoke(app, ["compare", str(study), "--with", "uniform-2", *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_a_file_cannot_have_the_name_of_a_tuned_baseline(study, tmp_path):
    (tmp_path / "mine-tuned.yaml").write_text("method: uniform\nrank: 2\n")
    result = CliRunner().invoke(app, ["compare", str(study), "--with", str(tmp_path / "mine-tuned.yaml")])
    assert result.exit_code == 2
    assert "'mine-tuned' is how --tune-lr would name a baseline" in " ".join(result.output.split())
