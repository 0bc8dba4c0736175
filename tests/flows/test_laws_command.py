"""`mars laws` on tables: text, JSON, hold-out conditions, plots and messages."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.cli.laws import laws_app, parse_hold_out
from flows.cli.main import app
from mars_core.laws import LAWS, get_law

runner = CliRunner()
QUICK = ("--bootstrap", 10, "--starts", 8)  # where the fit is not what is tested


@pytest.fixture
def points(tmp_path):
    table = pd.DataFrame([(r, D, s) for r in (4, 8, 16) for D in 2.0 ** np.arange(6, 12) for s in range(2)])
    table.columns = ["r", "D", "seed"]
    noise = np.random.default_rng(0).standard_normal(len(table))
    table["steps"] = get_law("convergence").predict([2.0, -0.25, 0.8, 10.0], table) * np.exp(0.02 * noise)
    table.to_csv(tmp_path / "points.csv", index=False)
    return tmp_path / "points.csv"


def run(*arguments):
    return runner.invoke(laws_app, [str(argument) for argument in arguments])


def test_list_shows_every_law():
    shown = run("list")
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in LAWS)
    assert [row["name"] for row in json.loads(run("list", "--json").stdout)] == list(LAWS)


def test_fit_prints_json_with_the_promised_keys(points):
    result = run("fit", "--law", "convergence", "--data", points, "--bootstrap", 50, "--starts", 8, "--json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert {"law", "coefficients", "intervals", "objective", "n_points", "statuses", "held_out"} <= set(data)
    assert list(data["coefficients"]) == ["k", "gamma", "delta", "E"]
    assert all(len(interval) == 2 for interval in data["intervals"].values())
    assert data["coefficients"]["gamma"] == pytest.approx(-0.25, abs=0.05)


def test_fit_prints_text(points):
    result = run("fit", "--law", "convergence", "--data", points, "--bootstrap", 50, "--starts", 8)
    assert result.exit_code == 0
    for piece in ("gamma", "95% interval", "held out", "steps_per_rank"):
        assert piece in result.stdout


@pytest.mark.parametrize(("rule", "held"), [("D>=1024", 12), ("D > 1024", 6), ("largest", 6), ("none", None)])
def test_hold_out_rules(points, rule, held):
    result = run("fit", "--law", "convergence", "--data", points, "--hold-out", rule, *QUICK, "--json")
    held_out = json.loads(result.stdout)["held_out"]
    assert (held_out["n_test"] if held_out else None) == held


@pytest.mark.parametrize("text", ["D>=lots", "Q>=3", "half"])
def test_a_bad_hold_out_rule_is_explained(points, text):
    with pytest.raises(ValueError, match="--hold-out"):
        parse_hold_out(text, pd.read_csv(points))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--law", "nonsense", "--data", "points.csv"),
        ("--law", "convergence", "--data", "absent.csv"),
        ("--law", "performance", "--data", "points.csv"),
        ("--law", "convergence", "--data", "points.txt"),
    ],
)
def test_a_callers_mistake_is_one_message_and_exit_code_2(points, arguments, monkeypatch):
    monkeypatch.chdir(points.parent)
    (points.parent / "points.txt").write_text("r D steps")
    result = run("fit", *arguments)
    assert result.exit_code == 2
    assert "error:" in result.output
    assert "Traceback" not in result.output


def test_parquet_and_plots(points, tmp_path):
    pd.read_csv(points).to_parquet(tmp_path / "points.parquet")
    result = run(
        "fit",
        "--law",
        "convergence",
        "--data",
        tmp_path / "points.parquet",
        *QUICK,
        "--plots",
        tmp_path / "p",
    )
    assert result.exit_code == 0
    assert (tmp_path / "p" / "fit.png").is_file()


def test_the_command_module_imports_no_torch():
    code = "import sys, flows.cli.laws; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.fixture
def scores(tmp_path):
    steps = np.tile([8, 16, 32, 64, 128, 256, 512], 3)
    table = pd.DataFrame({"run_id": np.repeat(["a", "b", "c"], 7), "step": steps})
    table["train_loss"] = 0.5 + 6.0 / table.step**0.5 + np.repeat([0.0, 0.05, 0.1], 7)
    table["score"] = get_law("loss-to-score").predict([70.0, 20.0, 0.8, 2.0], {"loss": table.train_loss})
    table.to_csv(tmp_path / "scores.csv", index=False)
    return tmp_path / "scores.csv"


def test_fit_of_a_law_of_fine_tuning_shows_the_best_independent_fits_and_noise(scores):
    arguments = ("fit", "--law", "loss-to-score", "--data", scores, "--window", "interval", "--bootstrap", 10)
    result = run(*arguments, "--at-least", "P_max=60", "--noise", "--starts", 20, "--json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert len(data["best_fits"]) == 5
    assert data["at_least"] == {"P_max": 60}
    assert data["coefficients"]["P_max"] == pytest.approx(70, rel=1e-2)
    assert data["noise"]["sigma"] < 0.1
    shown = run(*arguments, "--noise", "--starts", 20)
    assert "independent fit" in shown.stdout
    assert "sigma" in shown.stdout


def test_fit_refuses_what_is_not_a_least_value(scores):
    result = run("fit", "--law", "loss-to-score", "--data", scores, "--at-least", "P_max>80")
    assert result.exit_code == 2


def test_published_prints_what_follows_and_what_does_not():
    shown = CliRunner().invoke(app, ["laws", "published", "--json"])
    assert shown.exit_code == 0
    data = json.loads(shown.stdout)
    assert {"sft-scratch", "sft-pretrained/ocr", "loss-to-score/ocr"} <= {one["name"] for one in data["coefficients"]}
    table_1 = [row for row in data["reproduced"] if row["kind"] == "table 1"]
    assert len(table_1) == 18
    assert max(abs(row["deviation"]) for row in table_1) < 0.021
    assert "Table 2" in CliRunner().invoke(app, ["laws", "published"]).stdout
