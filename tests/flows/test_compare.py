"""`mars compare` and `mars init`, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli.main import app
from tasks.final.compare import check_baselines
from tasks.inputs.opened import Inputs
from tasks.settings.baselines import read_baseline, shipped_baselines
from tasks.settings.final import FinalConfig
from tasks.settings.presets.studies import shipped_presets
from tasks.settings.study import read_study
from tasks.storage.folder import Revision
from tasks.tracking.runs import tracking_uri

BASELINES = ["pair-4-2", "learning-rates-1e-4-1e-3", "full-rank"]


def modified(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_baselines_are_trained_tested_and_shown_beside_the_chosen_pair(copied, tmp_path):
    own = tmp_path / "small-adalora.yaml"
    own.write_text("method: adalora\ntarget_rank: 2\ninit_rank: 4\n")
    study, revision = str(tmp_path / "study.yaml"), Revision(Path(copied.study), 1)
    options = [word for name in [*BASELINES, str(own)] for word in ("--with", name)]
    result = CliRunner().invoke(app, ["compare", study, *options, "--json"])
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.stdout[result.stdout.index("[\n") :])}
    assert list(rows) == ["base model", "MARS", *BASELINES, "small-adalora"]
    stored = json.loads(revision.path("evaluation.json").read_text())
    assert rows["MARS"]["test"] == stored["chosen"]
    for name in [*BASELINES, "small-adalora"]:
        assert rows[name]["test"]["overall"]["n_answers"] == stored["base"]["overall"]["n_answers"]
        assert rows[name]["steps"] == rows["MARS"]["steps"]  # the same budget
        assert rows[name]["seconds"] > 0
        generated = rows[name]["test"]["generated"]["overall"]
        assert generated["n"] == stored["base"]["generated"]["overall"]["n"] > 0
        folder = revision.path("final", "me4-llm2" if name == "pair-4-2" else name)
        answers = pq.read_table(folder / "answers.parquet").to_pandas()
        assert generated["correct"] == int(answers["correct"].sum())
        assert not list(folder.glob("parts-*"))
    assert rows["full-rank"]["trainable_parameters"] > rows["pair-4-2"]["trainable_parameters"]
    # A pair is a final run like any other, and may later be chosen without being trained again.
    assert (revision.path("final", "me4-llm2", "adapter", "adapter_model.safetensors")).is_file()
    assert (revision.path("final", "full-rank", "model", "config.json")).is_file()
    report = revision.path("report.html").read_text()
    assert "Against baselines" in report
    assert all(name in report for name in [*BASELINES, "small-adalora"])
    client = mlflow.MlflowClient(tracking_uri(Path(copied.study)))
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, "attributes.run_name = 'baseline full-rank'")
    assert run.data.metrics["test_perplexity"] == pytest.approx(rows["full-rank"]["test"]["overall"]["perplexity"])
    assert run.data.metrics["tokens_per_second"] > 0
    assert run.data.metrics["test_generated_overall"] == rows["full-rank"]["test"]["generated"]["overall"]["accuracy"]
    assert len(client.get_metric_history(run.info.run_id, "loss")) == rows["full-rank"]["steps"]

    before = modified(revision.folder)
    again = CliRunner().invoke(app, ["compare", study, "--with", "full-rank", "--json"])
    assert again.exit_code == 0, again.output
    after = modified(revision.folder)
    trained = {name for name in before if name.startswith(("final/", "evaluation"))}
    assert {name: after[name] for name in trained} == {name: before[name] for name in trained}
    names = [row["name"] for row in json.loads(again.stdout[again.stdout.index("[\n") :])]
    assert set(names) == set(rows)  # earlier baselines stay in the table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--with", "adalore"],
            "there is no baseline 'adalore': use one of adalora, dora, dynamic-ranks, frozen-vision, full-rank,",
        ),
        (["--with", "uniform-2-4"], "baseline 'uniform-2-4' has 2 numbers, expected 1 (rank)"),
        (["--with", "full-rank-3"], "has 1 numbers, expected 0 (none)"),
        (["--with", "missing.yaml"], "there is no baseline file missing.yaml"),
        ([], "name a study and at least one baseline"),
    ],
)
def test_a_baseline_that_is_none_is_named_before_anything_runs(options, message, study):
    result = CliRunner().invoke(app, ["compare", str(study), *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_a_baseline_that_the_model_cannot_hold_is_refused(copied, tmp_path):
    result = CliRunner().invoke(app, ["compare", str(tmp_path / "study.yaml"), "--with", "adalora-500"])
    assert result.exit_code == 2
    assert "baseline adalora-500: AdaLoRA's rank 750 at the start is above the width" in " ".join(result.output.split())


def test_a_baseline_that_cannot_be_sharded_is_refused_before_anything_runs(study, tmp_path):
    (tmp_path / "fsdp.yaml").write_text("distributed_type: FSDP\nnum_processes: 2\nfsdp_config: {fsdp_version: 2}\n")
    sharded = read_study(study).model_copy(update={"final": FinalConfig(accelerate=str(tmp_path / "fsdp.yaml"))})
    inputs = Inputs(sharded)
    check_baselines(inputs, [read_baseline(name) for name in ("uniform-2", "full-rank", "last-layer")])
    with pytest.raises(ValueError, match=r"baseline adalora-2 cannot be trained with FSDP.*use DDP"):
        check_baselines(inputs, [read_baseline("adalora-2")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: lora\n", "baseline .*: .*lora.* does not match any of the expected tags"),
        ("method: uniform\nrank: -1\n", "uniform.rank: Input should be greater than or equal to 0"),
        ("method: uniform\nrank: 2\nalpha: 3\n", "uniform.alpha: Extra inputs are not permitted"),
        ("- a list\n", "baseline .*"),
        ("a: [\n", "is not readable YAML"),
    ],
)
def test_a_broken_baseline_file_says_what_is_wrong(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_baseline(str(tmp_path / "mine.yaml"))


def test_the_papers_baselines_ship():
    assert set(shipped_baselines()) == {
        "adalora", "dora", "dynamic-ranks", "full-rank", "geolora", "learning-rates", "pair", "rslora", "uniform",
        "frozen-vision", "last-layer", "projector-only", "top-layers",
    }  # fmt: skip
    assert read_baseline("adalora").settings.target_rank == 32  # section 3.1
    rates = read_baseline("learning-rates-1e-7-1e-5").settings
    assert (rates.me, rates.llm, rates.rank) == (1e-7, 1e-5, 16)
    assert rates.rates == (1e-7, 1e-5, 1e-5)  # the projector follows the LLM
    assert read_baseline("pair-32-8").pair.slug == "me32-llm8"
    listed = CliRunner().invoke(app, ["compare", "--list"])
    assert all(name in listed.output for name in shipped_baselines())


@pytest.mark.parametrize(("name", "epochs", "tested"), [("paper-llava", 3, 15000), ("paper-scienceqa", 12, 500)])
def test_init_writes_the_papers_settings_in_full(tmp_path, name, epochs, tested):
    """Appendix G: Adam at 1e-5, batches of 8, cosine with 10% warm-up; ranks 8 to 64."""
    data, output = tmp_path / "data.json", tmp_path / "made" / "study.yaml"
    data.write_text("[]")
    arguments = ["init", name, "--model", "some/model", "--data", str(data), "--study", str(tmp_path / "runs"), "-o"]
    result = CliRunner().invoke(app, [*arguments, str(output)])
    assert result.exit_code == 0, result.output
    config = read_study(output)
    assert (config.model, config.data.train, config.study) == ("some/model", str(data), str(tmp_path / "runs"))
    assert (config.recipe.learning_rate, config.recipe.batch_size, config.recipe.warmup_ratio) == (1e-5, 8, 0.1)
    assert config.calibration.ranks == (8, 16, 32, 64)
    # Eq. 1 to 3 as printed, and section 2.2.3: training iterations to the lowest perplexity, by size (appendix A)
    assert (config.search.law, config.fit.level, config.fit.eps) == ("paper", "own", 0)
    assert config.calibration.runs == "per_size"
    assert (config.final.epochs, config.data.test_samples, config.data.validation_samples) == (epochs, tested, 500)
    written = yaml.safe_load(output.read_text())
    assert written["fit"]["bootstrap"] == 200  # what nobody asked for is spelled out too
    assert CliRunner().invoke(app, [*arguments, str(output)]).exit_code == 2  # it is not written over
    assert CliRunner().invoke(app, [*arguments, str(output), "--force"]).exit_code == 0


def test_init_lists_what_ships_and_refuses_the_rest(tmp_path):
    listed = CliRunner().invoke(app, ["init", "--list", "--json"])
    assert set(json.loads(listed.stdout)) == set(shipped_presets()) == {"paper-llava", "paper-scienceqa"}
    options = ["--model", "m", "--data", str(tmp_path / "none.json"), "-o", str(tmp_path / "study.yaml")]
    for preset, message in (("paper-x", "there is no study 'paper-x'"), ("paper-llava", "correct --data")):
        result = CliRunner().invoke(app, ["init", preset, *options])
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
    assert not (tmp_path / "study.yaml").exists()
