"""The champion's adapter, where another run of its pair is about to take its folder."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from mars_core.drift import Forgotten, judge_forgetting
from mars_core.evaluation.forgetting import Estimate, Forgetting
from mars_core.ranks import RankPair
from tasks.final.arm import Arm
from tasks.nightly import champion as champions
from tasks.nightly.champion import (
    Champion,
    champion_hash,
    champion_path,
    keep_champion_adapter,
    present_acceptance,
    read_champion,
)
from tasks.settings.data import DataConfig
from tasks.settings.study import StudyConfig
from tasks.storage.files import write_json
from tasks.storage.folder import Revision, finish
from tasks.storage.location import CACHE_VARIABLE, working_folder
from tasks.storage.transfer import pull
from tasks.study.opened import Study

PAIR = RankPair(2, 4)
ARM = Arm(PAIR)
FINAL, KEPT = "revisions/001/final/me2-llm4/adapter", "revisions/001/standing/me2-llm4/adapter"
WEIGHTS = "adapter_model.safetensors"
keep = keep_champion_adapter.fn


@pytest.fixture
def config(tmp_path):
    """A study whose only final run, made with inputs `before`, stands."""
    config = StudyConfig(study=str(tmp_path / "study"), model="m", data=DataConfig(train="t.json"))
    revision = first(config)
    write_json(revision.path("revision.json"), {})
    train(config, "before")
    champion = Champion(
        revision=1,
        pair=(2, 4),
        adapter=FINAL,
        registered_model="m",
        model_version="1",
        mlflow_run_id="before",
        validation_loss=1.0,
        validation_hash="v",
        model_fingerprint="f",
        recipe_hash="r",
        data_hash="d",
        laws={},
        choice_reason="",
        accepted_because="the first",
        accepted_at="2026-01-01T00:00:00+00:00",
        evaluation=None,
    )
    write_json(champion_path(revision.study), champion.to_json())
    return config


def first(config) -> Revision:
    return Revision(working_folder(config.study), 1)


def train(config, inputs) -> None:
    """What a final run leaves; its weights say which one it was."""
    folder = first(config).path("final", PAIR.slug)
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    (folder / "adapter" / WEIGHTS).write_text(inputs)
    write_json(folder / "training.json", {"role": "chosen", "mlflow_run_id": inputs})
    finish(first(config), f"finetune-{PAIR.slug}", inputs, [folder / "adapter", folder / "training.json"], {})


def standing_weights(config) -> str:
    study = working_folder(config.study)
    return (study / read_champion(study).adapter / WEIGHTS).read_text()


def test_a_run_with_other_settings_does_not_take_the_standing_adapter_away(config):
    before = read_champion(Path(config.study))
    for attempt in range(2):  # a run that was killed begins again
        keep(Study(config, first(config)), ARM, "after")
        assert (read_champion(Path(config.study)).adapter, standing_weights(config)) == (KEPT, "before"), attempt
    train(config, "after")
    assert standing_weights(config) == "before"
    # Decisions that were made against the champion are still made against it.
    assert champion_hash(read_champion(Path(config.study))) == champion_hash(before)
    keep(Study(config, first(config)), ARM, "once more")  # what is in `final` now does not stand
    assert standing_weights(config) == "before"


def test_a_run_that_was_accepted_in_the_meantime_is_kept_in_its_turn(config):
    keep(Study(config, first(config)), ARM, "after")
    train(config, "after")
    stored = read_champion(Path(config.study)).to_json()
    write_json(champion_path(Path(config.study)), stored | {"adapter": FINAL, "mlflow_run_id": "after"})
    keep(Study(config, first(config)), ARM, "once more")
    train(config, "once more")
    assert standing_weights(config) == "after"


def test_the_same_settings_another_pair_and_a_first_run_leave_everything_in_its_place(config):
    keep(Study(config, first(config)), ARM, "before")
    keep(Study(config, first(config)), Arm(RankPair(4, 4)), "after")
    keep(Study(config, Revision(Path(config.study), 2)), ARM, "after")
    assert (read_champion(Path(config.study)).adapter, standing_weights(config)) == (FINAL, "before")
    champion_path(Path(config.study)).unlink()
    keep(Study(config, first(config)), ARM, "after")
    assert not first(config).path("standing").exists()


def test_a_standing_adapter_that_is_gone_does_not_come_back_as_another_runs(config):
    folder = Path(config.study, FINAL)
    (folder / WEIGHTS).unlink()
    folder.rmdir()
    earlier = Path(config.study, KEPT)
    earlier.mkdir(parents=True)  # of a run that stood before this one
    (earlier / WEIGHTS).write_text("earlier")
    keep(Study(config, first(config)), ARM, "after")
    train(config, "after")
    assert not (Path(config.study) / read_champion(Path(config.study)).adapter).exists()


def test_the_kept_adapter_of_a_study_at_a_url_reaches_every_machine(config, monkeypatch, tmp_path):
    store = fsspec.filesystem("memory")
    if store.exists("/standing"):
        store.rm("/standing", recursive=True)
    store.put(f"{config.study}/", "/standing/study", recursive=True)
    config = config.model_copy(update={"study": "memory://standing/study"})
    for name in ("here", "there"):
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / name))
        pull(config.study)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "here"))
    keep(Study(config, first(config)), ARM, "after")
    store.pipe_file(f"/standing/study/{FINAL}/{WEIGHTS}", b"after")
    store.pipe_file("/standing/study/revisions/002/revision.json", b"{}")  # adapters of older revisions are not fetched
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "there"))
    pull(config.study)
    assert standing_weights(config) == "before"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "new"))
    pull(config.study)
    assert standing_weights(config) == "before"


def limited(config, limit) -> Study:
    search = config.search.model_copy(update={"max_forgetting": limit})
    return Study(config.model_copy(update={"search": search}), first(config))


@pytest.mark.parametrize("asked", ["present", "other"])
def test_a_refusal_for_forgetting_stands_until_the_limit_or_the_upstream_data_change(config, asked):
    study, champion = limited(config, 5), read_champion(Path(config.study))
    own = study.inputs.upstream_hash
    refused = judge_forgetting(Forgotten(12.3, 10.0, 14.7, limit=5, asked=own if asked == "present" else "other"))
    against = {"standing": champion_hash(champion), "run": "before"}
    folder = first(config).path("final", PAIR.slug)
    numbers = dict.fromkeys(("steps", "best_step", "trainable_parameters"), 8) | {"best_val_loss": 1.0, "seconds": 1.0}
    write_json(folder / "training.json", {"role": "chosen", "mlflow_run_id": "before"} | numbers)
    write_json(folder / "acceptance.json", {"decision": refused.to_json(), "against": against})
    assert present_acceptance(study, ARM, champion) == (refused if asked == "present" else None)
    assert present_acceptance(limited(config, 20), ARM, champion) is None
    assert present_acceptance(limited(config, None), ARM, champion) is None
    assert present_acceptance(study, ARM, None) is None  # against another champion nothing was decided


@pytest.mark.parametrize(("limit", "accepted"), [(None, True), (13, True), (12, False)])
def test_a_first_final_run_that_forgets_too_much_is_not_accepted(config, monkeypatch, limit, accepted):
    forgot = Estimate(12.3, 10.0, 14.7)
    monkeypatch.setattr(champions, "forgetting_of", lambda study, arm: Forgetting(None, forgot, None, (), 0.95))
    decision = champions._judge(limited(config, limit), ARM, None)
    assert decision.accepted is accepted
    assert accepted or decision.forgotten.limit == limit
