"""`mars init` without a name: the study file follows from data, model and machine, and it can be run."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli.main import app
from mars_core.demo import demo_backbone_path
from mars_core.models.families import family_of
from mars_core.models.partition import LinearLayer, Partition
from mars_core.planning.devices import Device
from tasks.planning import fitted_study
from tasks.planning.cost import cost_on_device
from tasks.settings.presets.studies import Files
from tasks.settings.study import read_study


@pytest.fixture
def given(tmp_path, demo_data):
    return Files(
        study=str(tmp_path / "study"),
        model=str(demo_backbone_path()),
        data=str(demo_data / "train.json"),
        images=str(demo_data / "images"),
    )


def test_the_file_reads_back_with_every_reason_beside_its_setting(given, tmp_path):
    output = tmp_path / "study.yaml"
    reasons = fitted_study.write_fitted(given, output, replace=False)
    config = read_study(output)
    assert config.calibration.ranks == (8, 16, 32, 64)  # the demo's narrowest layer has 96
    assert config.recipe.max_tokens == 256  # its samples have up to about 150
    assert config.recipe.batch_size == 4
    assert config.calibration.learning_rates == "auto"
    assert (config.data.validation_samples, config.data.test_samples) == (6, 6)  # a tenth of 64
    lines = {line.strip().partition(":")[0]: line for line in output.read_text().splitlines()}
    for name in set(reasons) - {"memory"}:
        assert lines[name].endswith(f"# {reasons[name]}")
    with pytest.raises(ValueError, match="--force"):
        fitted_study.write_fitted(given, output, replace=False)


@pytest.mark.slow
def test_memory_that_is_short_makes_passes_smaller_and_says_so(given, monkeypatch):
    """On a device with just less than the whole batch takes, half of it is taken at a time, and that does fit."""
    config, _ = fitted_study.fit_study(given)
    whole = cost_on_device(config, fitted_study.device_here())
    needed = whole["final"]["memory_bytes"]["total"]
    room = whole["final"]["usable_bytes"] / fitted_study.device_here().memory_bytes
    short = Device("a small device", int(0.97 * needed / room), None, 1e12)
    monkeypatch.setattr(fitted_study, "device_here", lambda: short)
    config, fitted = fitted_study.fit_study(given)
    assert config.micro_batch_size in (1, 2)
    assert "a small device" in fitted.reasons["micro_batch_size"]
    cost = cost_on_device(config, short)
    assert cost["final"]["fits"]
    assert cost["calibration"]["fits"]


@pytest.mark.slow
def test_a_model_that_fits_in_no_way_is_refused_with_what_it_takes(given, monkeypatch):
    monkeypatch.setattr(fitted_study, "device_here", lambda: Device("a toy", 1_000_000, None, 1e12))
    with pytest.raises(ValueError, match="does not fit into the 0 GiB of a toy"):
        fitted_study.fit_study(given)


@pytest.mark.parametrize(("width", "ranks"), [(64, [8, 16, 32, 64]), (63, [4, 8, 16, 32]), (5, [1, 2, 4])])
def test_ranks_stay_within_the_narrowest_layer(width, ranks):
    layers = {name: (LinearLayer(name, 128, width if name == "llm" else 128),) for name in ("me", "projector", "llm")}
    found = fitted_study._ranks(Partition(**layers, excluded=(), family=family_of("llava_onevision")))
    assert found.settings["calibration"]["ranks"] == ranks


def test_bad_rows_are_named_before_anything_is_written(given, tmp_path, demo_data):
    rows = json.loads((demo_data / "train.json").read_text())
    rows[3]["image"] = "missing.png"
    (tmp_path / "bad.json").write_text(json.dumps(rows))
    options = ["init", "--model", given.model, "--data", str(tmp_path / "bad.json"), "--images", given.images]
    result = CliRunner().invoke(app, [*options, "-o", str(tmp_path / "study.yaml")])
    assert result.exit_code == 2
    assert "row 4" in result.output
    assert not (tmp_path / "study.yaml").exists()


def test_without_a_terminal_what_is_missing_is_asked_for_as_an_option(tmp_path):
    result = CliRunner().invoke(app, ["init", "--data", "train.json", "-o", str(tmp_path / "study.yaml")])
    assert result.exit_code == 2
    assert "--model" in result.output


def test_a_person_at_a_terminal_is_asked(given, tmp_path, monkeypatch):
    monkeypatch.setattr("flows.cli.init.is_asked", lambda: True)
    options = ["init", "--images", given.images, "--study", given.study, "-o", str(tmp_path / "study.yaml")]
    result = CliRunner().invoke(app, options, input=f"{given.model}\n{given.data}\n")
    assert result.exit_code == 0, result.output
    assert yaml.safe_load((tmp_path / "study.yaml").read_text())["model"] == given.model
