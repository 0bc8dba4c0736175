from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from mars_core.demo import demo_backbone_path

COMMANDS = ["demo", "run", "calibrate", "fit", "search", "finetune", "evaluate", "report", "import", "clean", "nightly"]
COMMANDS += ["correlate", "accept", "up", "down", "doctor", "export", "init", "compare"]


@pytest.mark.parametrize("command", [[name] for name in COMMANDS] + [["model", "inspect"], ["data", "check"], ["laws"]])
def test_every_command_has_help(command):
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_a_flag_shows_no_type_and_an_option_does():
    output = CliRunner().invoke(app, ["model", "inspect", "--help"], env={"COLUMNS": "120"}).output
    assert "bool" not in output
    assert "--ranks" in output
    assert "<str>" in output or "TEXT" in output
    assert "bool" not in CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).output


def test_model_inspect_counts_the_ranks_of_a_study(tmp_path):
    study = tmp_path / "study.yaml"
    settings = {"study": "out", "model": str(demo_backbone_path()), "data": {"train": "train.json"}}
    settings |= {"calibration": {"ranks": [2, 4]}, "search": {"ranks": [2, 4, 6]}}
    study.write_text(json.dumps(settings))
    for arguments, ranks in ((), ["2", "4", "6"]), (("--ranks", "3"), ["3"]):
        result = CliRunner().invoke(app, ["model", "inspect", str(study), *arguments, "--json"])
        assert result.exit_code == 0, result.output
        assert list(json.loads(result.stdout)["groups"]["me"]["lora_parameters"]) == ranks


def test_model_inspect_counts_add_up():
    result = CliRunner().invoke(app, ["model", "inspect", str(demo_backbone_path()), "--ranks", "2,16", "--json"])
    assert result.exit_code == 0, result.output
    groups = json.loads(result.stdout)["groups"]
    assert set(groups) == {"me", "projector", "llm"}
    for group in groups.values():
        assert group["layers"] == len(group["targets"]) > 0
        assert group["lora_parameters"]["16"] == 8 * group["lora_parameters"]["2"]
    assert not any("lm_head" in name for group in groups.values() for name in group["targets"])


def test_model_inspect_refuses_ranks_that_are_no_numbers():
    result = CliRunner().invoke(app, ["model", "inspect", str(demo_backbone_path()), "--ranks", "2,x"])
    assert result.exit_code == 2
    assert "whole numbers" in result.output


def test_doctor_finds_the_packages():
    result = CliRunner().invoke(app, ["doctor", "--json"])
    findings = {finding["check"]: finding for finding in json.loads(result.stdout)}
    assert findings["torch"]["state"] == "ok"
    assert {"device", "memory", "disk", "MLflow store"} <= findings.keys()


def test_data_check_prints_statistics(finished, tmp_path):
    from tasks.settings.study import write_study

    write_study(finished, tmp_path / "study.yaml")
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path / "study.yaml"), "--json"])
    found = json.loads(result.stdout[result.stdout.index("{") :])
    assert result.exit_code == 0
    assert found["bad"] == []
    assert found["splits"]["train"] == 64


def test_search_prints_the_choice_as_json(finished):
    result = CliRunner().invoke(app, ["search", finished.study, "--json"])
    assert result.exit_code == 0, result.output
    choice = json.loads(result.stdout[result.stdout.index("{") :])
    decision = {"pair", "verdict", "reason", "regret", "regret_bound", "seeds_needed", "warnings", "rivals"}
    assert set(choice) == decision
    assert choice["pair"]
    assert choice["reason"]
    assert {rival["name"] for rival in choice["rivals"]} == {"best observed", "largest", "uniform"}
    text = CliRunner().invoke(app, ["search", finished.study]).stdout
    assert choice["reason"] in text
    assert "verdict: " in text


@pytest.mark.slow
def test_six_commands_in_order_make_a_whole_study(study):
    commands = ["calibrate", "fit", "search", "finetune", "evaluate", "report"]
    for command in commands:
        result = CliRunner().invoke(app, [command, str(study)])
        assert result.exit_code == 0, result.output
    assert (study.parent / "study" / "revisions" / "001" / "report.html").is_file()


def test_a_stage_whose_settings_changed_names_the_one_to_run_first(copied, tmp_path):
    from tasks.settings.study import write_study

    calibration = copied.calibration.model_copy(update={"seeds": (0, 1)})
    write_study(copied.model_copy(update={"calibration": calibration}), tmp_path / "study.yaml")
    result = CliRunner().invoke(app, ["fit", str(tmp_path / "study.yaml")])
    assert result.exit_code == 2
    assert "mars calibrate" in " ".join(result.output.split())


def test_model_inspect_reads_no_weights_and_says_what_a_pack_takes(tmp_path):
    from tasks.inputs.inspection import inspect_model

    for file in demo_backbone_path().glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    found = inspect_model(str(tmp_path), [2, 16, 128]).to_json()
    assert found["parameters"] == 1_073_664  # counted by hand from model.safetensors: the tied head once
    assert {(pair["r_me"], pair["r_llm"]) for pair in found["pairs"]} == {
        (r_me, r_llm)
        for r_me in (2, 16, 128)
        for r_llm in (2, 16)  # keys and values of the LLM are 64 wide
    }
    for pair in found["pairs"]:
        assert pair["trainable_parameters"] == 5376 * pair["r_me"] + (512 + 6144) * pair["r_llm"]
        assert pair["adapter_and_adam_bytes"] == 16 * pair["trainable_parameters"]
    memory = found["memory"]
    assert memory["frozen_bytes"]["float32"] == 2 * memory["frozen_bytes"]["bfloat16"] == 4 * found["parameters"]
    total = sum(pair["adapter_and_adam_bytes"] for pair in found["pairs"])
    assert memory["pack_adapter_and_adam_bytes"] == total
    assert memory["pack_bytes_without_activations"]["bfloat16"] == memory["frozen_bytes"]["bfloat16"] + total


def test_model_inspect_prints_tables():
    result = CliRunner().invoke(app, ["model", "inspect", str(demo_backbone_path()), "--ranks", "2"])
    assert result.exit_code == 0, result.output
    assert "1,073,664 parameters" in " ".join(result.output.split())  # lines are broken at the terminal's width
    assert "128x256" in result.output


def test_model_inspect_shows_how_to_describe_an_unknown_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    result = CliRunner().invoke(app, ["model", "inspect", str(tmp_path)])
    assert result.exit_code == 2
    assert "family:" in result.output
    assert "  llm: model.language_model" in result.output


def test_model_inspect_takes_the_family_of_a_study(tmp_path):
    text = f"study: out\nmodel: {demo_backbone_path()}\ndata: {{train: t.json}}\n"
    family = "family: {me: model.vision_tower, projector: [model.nowhere], llm: model.language_model}\n"
    (tmp_path / "study.yaml").write_text(text)
    (tmp_path / "described.yaml").write_text(text + family)
    result = CliRunner().invoke(app, ["model", "inspect", str(tmp_path / "study.yaml"), "--json"])
    assert json.loads(result.stdout)["groups"]["me"]["layers"] == 18
    result = CliRunner().invoke(app, ["model", "inspect", str(tmp_path / "described.yaml")])
    assert result.exit_code == 2
    assert "no module 'model.nowhere'" in result.output


def test_a_model_for_doctor_is_refused_without_training():
    result = CliRunner().invoke(app, ["doctor", "--model", "some/model"])
    assert result.exit_code == 2
    assert "--train" in result.output
