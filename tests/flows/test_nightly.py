"""Nights on a small study: quiet ones, changed data, reverted data, another rank, and who stays champion."""

from __future__ import annotations

import io
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest
from peft import PeftModel
from PIL import Image, ImageFile

from flows.nightly import nightly_flow
from flows.stages import accept_flow, finetune_flow
from flows.study import study_flow
from mars_core.evaluation.scores import evaluate
from mars_core.ranks import RankPair
from tasks.choice.search import chosen_pair
from tasks.final.arm import Arm
from tasks.inputs import base_model as resources
from tasks.inputs.data import scored_batches
from tasks.inputs.opened import Inputs
from tasks.nightly.champion import accept_by_hand, accept_if_better, read_acceptance, read_champion
from tasks.nightly.run import look
from tasks.settings.study import StudyConfig, write_study
from tasks.storage.files import read_json, write_json
from tasks.storage.folder import Revision, finish
from tasks.study.opened import Study
from tasks.study.revision import open_revision
from tasks.tracking import runs as tracking


@pytest.fixture
def own(copied: StudyConfig, tmp_path: Path, demo_data: Path) -> StudyConfig:
    """The finished study with data of its own that a test may change."""
    folder = tmp_path / "data"
    shutil.copytree(demo_data, folder)
    paths = {name: str(folder / f"{name}.json") for name in ("train", "validation", "test")}
    data = copied.data.model_copy(update=paths | {"images": str(folder / "images")})
    return copied.model_copy(update={"data": data})


def rewrite(path: str, change) -> None:
    file = Path(path)
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def night_of(config: StudyConfig, **how: Any) -> dict[str, Any]:
    """A night of a study whose file says what `config` says."""
    file = Path(config.study).with_suffix(".yaml")
    write_study(config, file)
    return nightly_flow(str(file), **how)


def champion(config: StudyConfig) -> str:
    """Version that the alias names, of the model that the champion names."""
    tracking.use_store(Path(config.study))
    name = read_champion(Path(config.study)).registered_model
    return str(mlflow.MlflowClient().get_model_version_by_alias(name, "champion").version)


def test_a_finished_study_stands_and_its_adapter_is_champion(copied, tmp_path):
    known = read_champion(Path(copied.study))
    assert known.pair == tuple(read_json(Path(copied.study, "revisions/001/choice.json"))["pair"])
    assert champion(copied) == known.model_version == "1"
    uri = f"models:/{known.registered_model}@champion"
    got = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "got")))
    weights = "adapter_model.safetensors"
    assert (got / weights).read_bytes() == Path(copied.study, known.adapter, weights).read_bytes()
    assert not [path for path in got.rglob("*") if path.suffix in (".pkl", ".pickle", ".bin", ".pt", ".pth")]


def test_runs_name_their_datasets_hours_and_figures(finished):
    tracking.use_store(Path(finished.study))
    client = mlflow.MlflowClient()
    runs = client.search_runs([tracking.open_experiment(Path(finished.study))])
    inputs = {
        run.data.tags["mars.kind"]: {d.dataset.name: d.dataset.digest for d in run.inputs.dataset_inputs}
        for run in runs
    }
    assert set(inputs["study"]) == {"train", "validation", "test"}
    assert set(inputs["calibration"]) == set(inputs["final"]) == {"train", "validation"}
    recorded = read_json(Path(finished.study, "revisions/001/data.json"))["hashes"]
    assert inputs["study"] == {split: digest[:36] for split, digest in recorded.items()}
    (parent,) = [run for run in runs if run.data.tags["mars.kind"] == "study"]
    source = mlflow.data.get_source(parent.inputs.dataset_inputs[0].dataset)
    assert source.uri in (finished.data.train, finished.data.validation, finished.data.test)
    children = [run.data.metrics["cpu_hours"] for run in runs if run is not parent]
    assert parent.data.metrics["cpu_hours"] == pytest.approx(sum(children))
    assert min(children) > 0
    figures = {item.path for item in client.list_artifacts(parent.info.run_id, "figures")}
    assert {"figures/heatmap.svg", "figures/law-p.svg"} <= figures


def test_a_quiet_night_takes_seconds_and_touches_neither_model_nor_pixels(own, monkeypatch):
    first = night_of(own)
    assert (first["verdict"], first["outcome"], first["trained_runs"]) == ("same pair", "kept", 0)

    def forbidden(*args, **kwargs):
        raise AssertionError("a quiet night must not do this")

    monkeypatch.setattr(resources, "load_base", forbidden)
    monkeypatch.setattr(ImageFile.ImageFile, "load", forbidden)
    quiet = night_of(own)
    print(f"quiet night: {quiet['seconds']:.2f} s")
    assert quiet["changes"] == []
    assert (quiet["outcome"], quiet["revision"]) == ("kept", 1)
    assert quiet["seconds"] < 10


def test_a_new_version_fits_and_searches_again_and_trains_nothing(own, monkeypatch):
    night_of(own)
    revision = Revision(Path(own.study), 1)
    before = {stage: read_json(revision.manifest(stage))["inputs"] for stage in ("calibrate", "fit", "search")}
    for module in ("choice.fit", "choice.search", "nightly.run"):
        monkeypatch.setattr(f"tasks.{module}.__version__", "9.9")
    night = night_of(own)
    assert any("code_version" in change for change in night["changes"])
    assert (night["revision"], night["trained_runs"], night["outcome"]) == (1, 0, "kept")
    after = {stage: read_json(revision.manifest(stage))["inputs"] for stage in before}
    assert {stage for stage in before if after[stage] != before[stage]} == {"fit", "search"}


def repainted(file: Path) -> bytes:
    """A PNG file with another first pixel that takes as many bytes: packed tighter, then padded behind its end."""
    size, buffer = file.stat().st_size, io.BytesIO()
    with Image.open(file) as picture:
        picture.putpixel((0, 0), tuple(value ^ 1 for value in picture.getpixel((0, 0))))
        picture.save(buffer, "PNG", optimize=True)
    assert buffer.tell() <= size
    return buffer.getvalue().ljust(size, b"\0")


def write_unseen(file: Path, content: bytes) -> None:
    """Put other bytes into a file, which keeps its size and its time."""
    before = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_an_image_of_equal_size_and_time_is_seen_to_have_changed(own):
    night_of(own)
    image = next(Path(own.data.images).iterdir())
    write_unseen(image, repainted(image))
    seen = look.fn(own)
    assert (seen.unchanged, seen.opens_revision) == (False, True)
    assert "data_hash" in seen.changes[0]


def test_an_image_that_broke_with_equal_size_and_time_is_named(own, monkeypatch):
    monkeypatch.setattr(look, "retry_delay_seconds", [0, 0, 0])  # a file may be there the next time
    image = next(Path(own.data.images).iterdir())
    content = bytearray(image.read_bytes())
    content[-20] ^= 1  # in the check sum of its pixels
    write_unseen(image, bytes(content))
    with pytest.raises(ValueError, match=rf"unreadable image '{image.name}'"):
        night_of(own)


@pytest.mark.parametrize("days", [-400, 400], ids=["was set forward", "was set back"])
def test_a_clock_that_was_set_makes_no_night_loud_and_hides_no_change(own, days):
    """All files lie `days` ahead of the clock, as those do that were written before it was set."""
    night_of(own)
    for file in [*Path(own.study).rglob("*"), *Path(own.data.train).parent.rglob("*")]:
        shifted = file.stat().st_mtime + days * 24 * 3600
        os.utime(file, (shifted, shifted))
    quiet = night_of(own)
    assert (quiet["changes"], quiet["outcome"], quiet["trained_runs"]) == ([], "kept", 0)
    rewrite(own.data.train, lambda rows: rows[1:])
    assert look.fn(own).opens_revision


def test_a_lost_output_is_no_quiet_night(own):
    night_of(own)
    Path(own.study, "revisions/001/laws.json").unlink()
    assert not look.fn(own).unchanged
    assert night_of(own)["outcome"] == "kept"
    assert Path(own.study, "revisions/001/laws.json").is_file()


@pytest.mark.slow
def test_changed_data_open_a_revision_and_reverted_data_take_over_the_old_runs(own):
    original = Path(own.data.train).read_text()
    rewrite(own.data.train, lambda rows: rows[4:])
    changed = night_of(own)
    assert (changed["revision"], changed["trained_runs"], changed["adopted_runs"]) == (2, 4, 0)
    report = Path(changed["report"]).read_text()
    assert "| train | 64 | 60 | 0 | 4 | 0 |" in report
    assert "law P" in report
    assert read_champion(Path(own.study)).revision == 1  # only an accepted final run changes it

    Path(own.data.train).write_text(original)
    reverted = night_of(own)
    assert (reverted["revision"], reverted["trained_runs"], reverted["adopted_runs"]) == (3, 0, 4)
    first, third = (read_json(Path(own.study, f"revisions/{n:03d}/laws.json")) for n in (1, 3))
    assert third["performance"]["coefficients"] == pytest.approx(first["performance"]["coefficients"])
    summaries = [read_json(path) for path in Path(own.study, "revisions/003/calibration").glob("*.json")]
    assert {summary["adopted_from"] for summary in summaries} == {1}


def test_other_test_data_open_a_revision_and_calibrate_nothing(own):
    rewrite(own.data.test, lambda rows: rows[1:])
    night = night_of(own)
    assert (night["revision"], night["trained_runs"], night["adopted_runs"]) == (2, 0, 4)
    assert night["verdict"] == "same pair"


@pytest.mark.slow
def test_another_rank_trains_only_its_own_pairs_and_a_material_change_makes_a_final_run(own):
    calibration = own.calibration.model_copy(update={"ranks": (2, 4, 8)})
    search = own.search.model_copy(update={"max_trainable_parameters": 30_000})  # the champion's pair is above it
    wider = own.model_copy(update={"calibration": calibration, "search": search})
    known = read_champion(Path(own.study))
    proposed = night_of(wider)
    assert (proposed["trained_runs"], proposed["verdict"], proposed["outcome"]) == (5, "material", "proposed")
    assert read_champion(Path(own.study)) == known

    done = night_of(wider, trigger="run")
    assert done["trained_runs"] == 0
    pair = RankPair(*done["chosen"])
    new = read_json(Path(own.study, f"revisions/001/final/{pair.slug}/training.json"))["best_val_loss"]
    better = new < known.validation_loss
    assert done["outcome"] == ("accepted" if better else "refused")
    assert champion(own) == ("2" if better else "1")
    again = night_of(wider, trigger="run")
    assert again["outcome"] == ("kept" if better else "refused")


def second_final(config: StudyConfig, loss: float) -> tuple[Revision, RankPair]:
    """A revision whose final run is a copy of the first one's adapter, with a planted validation loss."""
    first = Revision(Path(config.study), 1)
    pair = chosen_pair(first)
    revision = open_revision(Inputs(config), new=True)
    shutil.copytree(first.path("final", pair.slug), revision.path("final", pair.slug))
    revision.path("final", pair.slug, "acceptance.json").unlink()
    tracking.open_experiment(Path(config.study))
    with mlflow.start_run(experiment_id=tracking.open_experiment(Path(config.study))) as run:
        tracking.log_file(run.info.run_id, revision.path("final", pair.slug, "adapter"), "adapter")
    record = revision.path("final", pair.slug, "training.json")
    write_json(record, read_json(record) | {"best_val_loss": loss, "mlflow_run_id": run.info.run_id})
    return revision, pair


def another_recipe(config: StudyConfig) -> StudyConfig:
    return config.model_copy(update={"recipe": config.recipe.model_copy(update={"learning_rate": 5e-4})})


@pytest.mark.parametrize(("change", "accepted"), [(-0.01, True), (0.0, False), (0.01, False)])
def test_champion_moves_only_to_a_lower_validation_loss_on_the_same_samples(own, change, accepted):
    config = another_recipe(own)
    revision, pair = second_final(config, read_champion(Path(own.study)).validation_loss + change)
    decision = accept_if_better.fn(Study(config, revision), Arm(pair))
    assert decision.accepted == accepted
    assert champion(own) == ("2" if accepted else "1")
    assert read_champion(Path(own.study)).revision == (2 if accepted else 1)
    assert accept_if_better.fn(Study(config, revision), Arm(pair)).accepted == accepted  # decided once


@pytest.mark.parametrize(
    ("run", "said"),
    [("untracked", "did not answer when its final run began"), ("elsewhere", "MLFLOW_TRACKING_URI to the store")],
)
def test_a_final_run_that_mlflow_has_no_run_of_is_accepted_and_not_registered(own, capsys, run, said):
    config, stood = another_recipe(own), read_champion(Path(own.study))
    revision, pair = second_final(config, stood.validation_loss - 0.01)
    record = revision.path("final", pair.slug, "training.json")
    write_json(record, read_json(record) | {"mlflow_run_id": run})
    accept = partial(accept_if_better.fn, Study(config, revision), Arm(pair))
    assert accept().accepted
    new = read_champion(Path(own.study))
    assert (new.revision, new.model_version, new.registered_model) == (2, "", stood.registered_model)
    told = " ".join(capsys.readouterr().err.split())
    assert "is not in MLflow's model registry" in told
    assert said in told
    assert champion(own) == "1"  # what the registry had stays
    assert accept().reason == new.accepted_because  # decided once
    # Another one without a run is another one all the same.
    finish(revision, f"finetune-{pair.slug}", "other settings", [record], {})
    write_json(record, read_json(record) | {"best_val_loss": new.validation_loss + 1})
    if run == "untracked":
        assert not accept().accepted
    accept_by_hand.fn(Study(config, revision), Arm(pair))
    assert read_champion(Path(own.study)).validation_loss == new.validation_loss + 1


def test_a_worse_run_of_the_standing_pair_leaves_its_weights_standing(copied):
    """The same revision, the same pair, another budget: it is judged, refused, and replaces nothing that stands."""
    study = Path(copied.study)
    before, weights = read_champion(study), "adapter_model.safetensors"
    content = (study / before.adapter / weights).read_bytes()
    pair = RankPair(*before.pair)
    shorter = copied.model_copy(
        update={"final": copied.final.model_copy(update={"epochs": 0.2, "compare_uniform": False})}
    )
    trained = Path(finetune_flow(shorter, pair.r_me, pair.r_llm))
    assert (trained / weights).read_bytes() != content
    assert not accept_flow(shorter)["accepted"]
    after = read_champion(study)
    assert (after.mlflow_run_id, after.validation_loss) == (before.mlflow_run_id, before.validation_loss)
    assert (study / after.adapter / weights).read_bytes() == content
    assert champion(copied) == "1"
    assert read_acceptance(Revision(study, 1), Arm(pair), after).accepted is False  # it is not judged again


def test_on_other_validation_data_both_adapters_are_scored_again_alike(own):
    rewrite(own.data.validation, lambda rows: rows[:-3])
    revision, pair = second_final(own, 0.0)
    decision = accept_if_better.fn(Study(own, revision), Arm(pair))
    base = Inputs(own).base_model
    network = PeftModel.from_pretrained(base.model, str(Path(own.study, "revisions/001/final", pair.slug, "adapter")))
    batches = scored_batches(Inputs(own).validation_set, base, 4)
    assert decision.score.standing_loss == pytest.approx(evaluate(network, batches()).overall.loss, rel=1e-5)
    network.unload()
    assert (decision.score.samples, decision.score.of) == (9, 9)
    # The new one is a copy: what its training said of it does not count.
    assert decision.score.new_loss == decision.score.standing_loss
    assert not decision.accepted


def test_samples_that_the_standing_adapter_was_trained_on_judge_nothing(own):
    moved = json.loads(Path(own.data.train).read_text())[:5]
    images = {row["image"] for row in moved}
    rewrite(own.data.train, lambda rows: [row for row in rows if row["image"] not in images])
    rewrite(own.data.validation, lambda rows: rows + moved)
    revision, pair = second_final(own, 0.0)
    decision = accept_if_better.fn(Study(own, revision), Arm(pair))
    assert not decision.accepted
    assert "cannot be compared" in decision.reason
    assert champion(own) == "1"


@pytest.mark.slow
def test_the_whole_pipeline_on_new_data_decides_about_the_standing_choice(own):
    rewrite(own.data.train, lambda rows: rows[8:])
    before = read_champion(Path(own.study))
    summary = study_flow(own, new_revision=True)
    after = read_champion(Path(own.study))
    pair = RankPair(summary["pair"]["r_me"], summary["pair"]["r_llm"])
    loss = read_json(Path(own.study, f"revisions/002/final/{pair.slug}/training.json"))["best_val_loss"]
    assert after.revision == (2 if loss < before.validation_loss else 1)
