"""`mars import`: text and JSON, what it writes, messages, a real MLflow server, and a study's own runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Metric
from typer.testing import CliRunner

from flows.cli.main import app
from mars_core import importing
from mars_core.laws import get_law
from tasks.storage.folder import Revision

PORT = 21217
PLANTED = [3.0, 0.05, 0.2, 0.3, 1.0]


def run(*arguments):
    return CliRunner().invoke(app, ["import", *(str(argument) for argument in arguments)])


def planted(noise=0.001):
    rng = np.random.default_rng(0)
    rows = [(m, n, s) for m in (8, 16, 32) for n in (8, 16, 32) for s in (8, 16, 32, 64, 128)]
    table = pd.DataFrame(rows, columns=["vision", "text", "global_step"])
    inputs = {"r_me": table.vision, "r_llm": table.text, "D": 8 * table.global_step}
    error = noise * rng.standard_normal(len(table))
    table["eval"] = get_law("performance").predict(PLANTED, inputs) * np.exp(error)
    return table


@pytest.fixture
def csv(tmp_path):
    planted().to_csv(tmp_path / "grid.csv", index=False)
    return tmp_path / "grid.csv"


NAMED = ("--r-me", "vision", "--r-llm", "text", "--loss", "eval", "--bootstrap", 20)
IN_TABLE = (*NAMED, "--step", "global_step", "--batch-size", 8)


def test_a_table_becomes_laws_a_choice_and_a_report(csv, tmp_path):
    out = tmp_path / "out"
    result = run(csv, *IN_TABLE, "--target", 4096, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["runs"], found["pairs"], found["sizes"][0], found["sizes"][-1]) == (9, 9, 64, 1024)
    assert found["laws"]["performance"]["coefficients"]["alpha_l"] == pytest.approx(0.2, abs=0.03)
    assert found["choice"]["D_target"] == 4096
    assert json.loads((out / "choice.json").read_text()) == found["choice"]
    assert "draws" in json.loads((out / "laws.json").read_text())["performance"]
    assert len(pd.read_parquet(out / "metrics.parquet")) == 45
    assert "</html>" in (out / "report.html").read_text()
    assert json.loads((out / "import.json").read_text())["name"] == "grid"


def test_text_shows_coefficients_intervals_verdict_and_notes(csv, tmp_path, one_figure):
    result = run(csv, *IN_TABLE, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for piece in ("alpha_m", "95% interval", "note:", "r_me = ", "expected regret", "the largest pair", "report:"):
        assert piece in result.stdout
    again = run(csv, *IN_TABLE, "--out", tmp_path / "out")  # its own folder is written again
    assert again.exit_code == 0, again.output


def test_bad_rows_are_all_listed_and_nothing_is_written(tmp_path, one_figure):
    table = planted().astype(object)
    table.loc[2, "eval"] = "nan"
    table.loc[4, "vision"] = "8b"
    table.to_csv(tmp_path / "bad.csv", index=False)
    result = run(tmp_path / "bad.csv", *IN_TABLE, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["problems"] == [
        {"where": "row 3", "reason": "loss is empty or NaN"},
        {"where": "row 5", "reason": "r_me is '8b', which is no number"},
    ]
    assert not (tmp_path / "out").exists()
    assert run(tmp_path / "bad.csv", *IN_TABLE, "--out", tmp_path / "out", "--skip-bad-rows").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.csv"], "there is no file"),
        (["grid.csv"], "lacks r_me"),
        (["grid.csv", *IN_TABLE, "--experiment", "x"], "is a table"),
        (["grid.csv", *IN_TABLE, "--law", "other"], "expected mars or paper"),
        (["grid.csv", *IN_TABLE, "--out", "."], "holds other files"),
        (["grid.csv", *IN_TABLE, "--ranks-me", "8,x"], "whole numbers"),
    ],
)
def test_a_callers_mistake_is_one_message_and_exit_code_2(csv, monkeypatch, arguments, message):
    monkeypatch.chdir(csv.parent)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_finished_study_gives_its_own_laws_and_choice_again(finished, tmp_path, one_figure, monkeypatch):
    """The study's MLflow store as the source: child runs, the study's and final runs among them."""
    draws = finished.fit.bootstrap
    monkeypatch.setattr(importing, "Question", partial(importing.Question, starts=finished.fit.starts))
    result = run(finished.study, "--out", tmp_path / "out", "--target", 64, "--bootstrap", draws, "--json")
    assert result.exit_code == 0, result.output
    revision = Revision(Path(finished.study), 1)
    own = json.loads(revision.path("laws.json").read_text())
    imported = json.loads((tmp_path / "out" / "laws.json").read_text())
    for name in ("causes", "reference", "signal", "level", "performance", "convergence", "convergence_times"):
        assert imported[name] == own[name], name
    choice = json.loads((tmp_path / "out" / "choice.json").read_text())
    chosen = json.loads(revision.path("choice.json").read_text())
    (told,) = [note for note in chosen["diagnostics"].pop("notes") if note not in choice["diagnostics"]["notes"]]
    assert told.startswith("ranks are chosen for 64 samples")  # only the study knows its final run
    del choice["diagnostics"]["notes"]
    for name in ("pair", "verdict", "reason", "regret", "rivals", "diagnostics"):
        assert choice[name] == chosen[name], name
    assert choice["candidates"] == chosen["candidates"]  # with the model's own parameter counts


def test_the_command_imports_no_torch():
    modules = "flows.cli.importing, tasks.importing.runs, tasks.importing.mlflow_runs"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.fixture
def server(tmp_path):
    """A real MLflow server on loopback."""
    uri = f"http://127.0.0.1:{PORT}"
    store = f"sqlite:///{tmp_path / 'server.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(PORT), "--workers", "1"]
    command += ["--backend-store-uri", store, "--default-artifact-root", str(tmp_path / "artifacts")]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1).read()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
        yield uri
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.stack
def test_runs_on_an_mlflow_server(server, tmp_path):
    client = mlflow.MlflowClient(server)
    experiment = client.create_experiment("lora grid")
    for (vision, text), rows in planted().groupby(["vision", "text"]):
        run_id = client.create_run(experiment).info.run_id
        for key, value in {"vision": vision, "text": text, "per_device_batch": 8}.items():
            client.log_param(run_id, key, value)
        client.log_batch(run_id, [Metric("eval", r.eval, 0, r.global_step) for r in rows.itertuples()])
        client.set_terminated(run_id)
    result = run(server, *NAMED, "--batch-size", "per_device_batch", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    planted().to_csv(tmp_path / "same.csv", index=False)
    same = run(tmp_path / "same.csv", *IN_TABLE, "--out", tmp_path / "out2", "--json")
    found, expected = json.loads(result.stdout), json.loads(same.stdout)
    assert found["choice"]["pair"] == expected["choice"]["pair"]
    assert found["laws"]["performance"]["coefficients"] == pytest.approx(
        expected["laws"]["performance"]["coefficients"], rel=1e-6
    )


@pytest.mark.stack
def test_a_server_that_does_not_answer_is_one_message(tmp_path):
    result = run(f"http://user:secret@127.0.0.1:{PORT + 1}", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "cannot be read" in result.output
    assert "secret" not in result.output
