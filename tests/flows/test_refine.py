"""`mars refine`, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli.main import app
from mars_core.layerwise.probe import read_probes
from mars_core.models.lora import trainable_parameters
from mars_core.ranks import LayerRanks, RankPair
from tasks.inputs.opened import open_inputs
from tasks.refine import probe, ranks
from tasks.storage.folder import Revision
from tasks.tracking.runs import tracking_uri

NAME = "hydra-me4-llm4"


def refine(study: Path, *options: str):
    return CliRunner().invoke(app, ["refine", str(study), *options])


@pytest.mark.slow
def test_the_pairs_ranks_are_shared_out_trained_and_shown_beside_the_pair(copied, tmp_path, monkeypatch):
    study, revision = tmp_path / "study.yaml", Revision(Path(copied.study), 1)
    result = refine(study, "--method", "hydra", "--ranks", "4", "4", "--json")
    assert result.exit_code == 0, result.output
    shared = json.loads(result.stdout[result.stdout.index("{\n") :])
    partition = open_inputs(copied).partition
    count, allowed = (trainable_parameters(partition, own) for own in (LayerRanks.of(shared["ranks"]), RankPair(4, 4)))
    assert 0.995 * allowed <= count <= allowed
    probes = read_probes(pq.read_table(revision.path("refine", "me4-llm4", "norms.parquet")))
    for module, found in probes.items():
        assert all(one.norm > 0 for one in found.layers)
        norms, own = found.block_norms(), shared["modules"][module]
        ups = [shared["ranks"][p.layer] for p in sorted(found.places) if p.component == "up"]
        by_norm = sorted(range(found.blocks), key=norms.__getitem__)
        assert ups[by_norm[0]] < ups[by_norm[-1]]  # the more gradient, the more rank
        assert 0.995 * own["budget"] <= own["spent"] <= own["budget"]
    config = json.loads(revision.path("final", NAME, "adapter", "adapter_config.json").read_text())
    assert sorted(config["rank_pattern"].values()) == sorted(shared["ranks"].values())
    assert {config["alpha_pattern"][name] / rank for name, rank in config["rank_pattern"].items()} == {2}
    training = json.loads(revision.path("final", NAME, "training.json").read_text())
    assert training["trainable_parameters"] == count
    rows = {row["name"]: row for row in json.loads(revision.path("comparison.json").read_text())["rows"]}
    assert rows[NAME]["trainable_parameters"] == count
    assert rows[NAME]["test"]["overall"]["n_answers"] == rows["MARS"]["test"]["overall"]["n_answers"]
    spectrum = pq.read_table(revision.path("refine", "spectra", f"{NAME}.parquet")).to_pandas()
    assert dict(zip(spectrum["layer"], spectrum["rank"], strict=True)) == shared["ranks"]
    assert spectrum["stable_rank"].between(1, spectrum["rank"]).all()
    report = revision.path("report.html").read_text()
    assert "Ranks over the layers" in report
    assert NAME in report
    client = mlflow.MlflowClient(tracking_uri(Path(copied.study)))
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, "attributes.run_name = 'probe norms of me4-llm4'")
    logged = [point.value for point in client.get_metric_history(run.info.run_id, "gradient_norm_llm")]
    assert logged == pytest.approx(probes["llm"].block_norms())

    exported = CliRunner().invoke(
        app, ["export", str(study), "--to", "axolotl", "--refined", NAME, "-o", str(tmp_path / "a.yaml"), "--json"]
    )
    assert exported.exit_code == 0, exported.output
    start = json.loads((tmp_path / "a-files" / "start" / "adapter_config.json").read_text())
    assert start["rank_pattern"] == yaml.safe_load((tmp_path / "a.yaml").read_text())["lora_rank_pattern"]
    assert start["rank_pattern"] == config["rank_pattern"]
    merged = CliRunner().invoke(app, ["export", str(study), "--merged", str(tmp_path / "m"), "--refined", NAME])
    assert merged.exit_code == 0, merged.output

    # Nothing is done twice, and a rival takes the probe that is there.
    monkeypatch.setattr(probe, "train_pack", lambda *_, **__: pytest.fail("the probe is trained again"))
    before = {path: path.stat().st_mtime_ns for path in revision.folder.rglob("*") if path.is_file()}
    assert refine(study, "--method", "hydra", "--ranks", "4", "4").exit_code == 0
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path.name for path in before if after[path] != before[path]] == []
    fisher = refine(study, "--method", "fisher", "--ranks", "4", "4")
    assert fisher.exit_code == 0, fisher.output
    rows = [row["name"] for row in json.loads(revision.path("comparison.json").read_text())["rows"]]
    assert rows == ["base model", "MARS", NAME, "fisher-me4-llm4"]  # what was compared before stays in the table


@pytest.mark.slow
@pytest.mark.parametrize("method", ["uniform", "hydra-coarse", "adalora", "eva", "gradient"])
def test_every_method_refines_a_study(copied, tmp_path, method):
    revision = Revision(Path(copied.study), 1)
    result = refine(tmp_path / "study.yaml", "--method", method, "--ranks", "4", "4", "--json")
    assert result.exit_code == 0, result.output
    shared = json.loads(result.stdout[result.stdout.index("{\n") :])
    partition = open_inputs(copied).partition
    count, allowed = (trainable_parameters(partition, own) for own in (LayerRanks.of(shared["ranks"]), RankPair(4, 4)))
    assert 0.995 * allowed <= count <= allowed
    assert (len(set(shared["ranks"].values())) == 1) == (method == "uniform")
    assert revision.path("final", f"{method}-me4-llm4", "test.json").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "hydro"], "there is no method 'hydro' to share ranks out: use one of hydra, hydra-coarse"),
        (["--method", "hydra", "--setting", "setting6"], "there is no setting 'setting6'"),
        (["--method", "hydra", "--step", "0"], "stages and step are 1 or more, got 3 and 0"),
        (["--method", "eva", "--rates", "1e-4,2e-4"], "--rates are the learning rates that --tune-lr tries"),
    ],
)
def test_options_without_meaning_are_refused_before_data_are_read(study, options, message):
    result = refine(study, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_a_study_that_cannot_be_refined_says_why(copied, tmp_path):
    study, small = tmp_path / "study.yaml", ["--ranks", "2", "2"]
    for options, message in [
        (["--method", "hydra", "--stages", "4"], "the me has 3 blocks, fewer than 4 stages: use --stages 3 or fewer"),
        (["--method", "hydra", "--module", "projector"], "there is no module 'projector' whose ranks could be shared"),
        (["--method", "fisher", "--ranks", "0", "2", "--module", "me"], "(0, 2) has no rank to share out in me"),
        (["--method", "fisher", "--ranks", "2", "400"], "rank 400 for the llm is above the width"),
        (
            ["--method", "hydra", "--step", "2", *small],
            "rank 2 is too small for 3 stages of 1, 1, 1 blocks whose ranks rise by 2",
        ),
    ]:
        result = refine(study, *options)
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split())


def test_layer_wise_ranks_that_are_not_there_cannot_be_exported(finished, tmp_path):
    for options, message in [
        (["--refined", "hydra-me8-llm8"], "there are no layer-wise ranks 'hydra-me8-llm8' in"),
        (["--refined", "hydra-me8-llm8", "--ranks", "2", "2"], "--ranks and --refined name two things to export"),
    ]:
        command = ["export", finished.study, "--to", "axolotl", "-o", str(tmp_path / "a.yaml"), *options]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split())


def test_a_killed_probe_goes_on_from_its_last_checkpoint(copied, monkeypatch):
    from tasks.final.arm import Arm
    from tasks.study.opened import open_study

    study, arm, steps = open_study(copied), Arm(RankPair(2, 4)), []
    (whole, *_), keep = probe._norms(study, arm), probe.write_state

    def killed(folder, state):
        keep(folder, state)
        if state.step > 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(probe, "write_state", killed)
    with pytest.raises(KeyboardInterrupt):
        probe._norms(study, arm)
    monkeypatch.setattr(probe, "write_state", lambda folder, state: steps.append(state.step))
    assert probe._norms(study, arm)[0] == whole
    assert min(steps) > 3  # those up to the checkpoint were not made again
    assert ranks.shared_out_in(study.revision) == []
