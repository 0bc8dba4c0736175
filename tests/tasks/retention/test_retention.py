"""What a cleaning finds and deletes, on study folders laid out as the stages lay them out."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import fsspec
import mlflow
import pytest

from tasks.retention import delete as deletion
from tasks.retention.delete import Deletion, delete
from tasks.retention.find import plan_cleaning
from tasks.settings.calibration import CalibrationConfig
from tasks.settings.data import DataConfig
from tasks.settings.final import RetentionConfig
from tasks.settings.search import SearchConfig
from tasks.settings.study import StudyConfig, write_study
from tasks.storage.files import file_hash, read_json, write_json
from tasks.storage.folder import Revision, finish, revisions
from tasks.storage.location import working_folder
from tasks.storage.transfer import pull
from tasks.tracking.champion import Champions, find_champions

NOBODY = Champions()
DAY = 24 * 3600


@pytest.fixture
def config(tmp_path):
    config = StudyConfig(
        study=str(tmp_path / "study"),
        model="m",
        data=DataConfig(train="t.json"),
        calibration=CalibrationConfig(ranks=(2, 4)),
    )
    write_study(config, tmp_path / "study" / "study.yaml")
    return config


def with_policy(config, **policy):
    return config.model_copy(update={"retention": RetentionConfig(**policy)})


def write(path: Path, age: float = 0.0, text: str = "x" * 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)
    return path


def revision(config, number, *, done=True, chosen=(2, 4), finals=((2, 4), (2, 2))):
    """A revision as a finished run leaves it: manifests that list every output."""
    made = Revision(Path(config.study), number)
    write_json(made.path("revision.json"), {})
    if not done:
        return made
    metrics = write(made.path("calibration", "abc.parquet"), age=DAY)
    finish(made, "calibrate", "i", [metrics], {})
    for name, content in {"laws": {}, "choice": {"pair": list(chosen)}}.items():
        write_json(made.path(f"{name}.json"), content)
    finish(made, "fit", "i", [made.path("laws.json")], {})
    finish(made, "search", "i", [made.path("choice.json")], {})
    for pair in finals:
        final(made, pair, "chosen" if pair == chosen else "uniform" if pair == (2, 2) else "asked for")
    return made


def final(made, pair, role):
    folder = made.path("final", f"me{pair[0]}-llm{pair[1]}")
    write(folder / "adapter" / "adapter_model.safetensors", age=DAY)
    write_json(folder / "training.json", {"role": role, "mlflow_run_id": f"{made.number}-{folder.name}"})
    finish(made, f"finetune-{folder.name}", "inputs", [folder / "adapter", folder / "training.json"], {})


def found(config, champions=NOBODY, **options):
    cleaning = plan_cleaning(config, champions, **options)
    return {str(item.path.relative_to(cleaning.study)): item.kind for item in cleaning.items}


def clean(config, champions=NOBODY, **options):
    cleaning = plan_cleaning(config, champions, **options)
    return delete(config.study, cleaning.study, [Deletion(item.path, item.manifests) for item in cleaning.items])


def listed_outputs_are_whole(config):
    for manifest in Path(config.study).glob("revisions/*/manifests/*.json"):
        for name, digest in read_json(manifest)["outputs"].items():
            assert file_hash(manifest.parent.parent / name) == digest


def test_a_finished_study_has_nothing_to_delete(config):
    revision(config, 1)
    assert found(config) == {}


def test_intermediates_of_finished_stages_go_and_nothing_that_a_manifest_lists(config):
    made = revision(config, 1)
    write(made.path("calibration", "snapshots", "abc", "8.safetensors"), age=DAY)
    write(made.path("calibration", "state", "pack", "state.safetensors"), age=DAY)
    write(made.path("final", "me2-llm4", "checkpoints-inputs", "checkpoint-5", "model"), age=DAY)
    assert found(config) == {
        "revisions/001/calibration/snapshots/abc": "snapshots",
        "revisions/001/calibration/state/pack": "pack state",
        "revisions/001/final/me2-llm4/checkpoints-inputs": "checkpoints",
    }
    assert clean(config) == []
    assert found(config) == {}
    assert not made.path("calibration", "state").exists()
    listed_outputs_are_whole(config)


def test_what_unfinished_stages_resume_from_is_kept_unless_asked(config):
    made = revision(config, 1, done=False)
    write(made.path("calibration", "snapshots", "abc", "8.safetensors"), age=DAY)
    write(made.path("calibration", "state", "pack", "state.json"), age=DAY)
    write(made.path("final", "me2-llm4", "checkpoints-xyz", "model"), age=DAY)
    cleaning = plan_cleaning(config, NOBODY)
    assert cleaning.items == ()
    assert any("3 resume states" in note for note in cleaning.notes)
    assert set(found(config, include_resume=True).values()) == {"resume state"}


def test_a_stage_that_runs_again_with_other_settings_keeps_its_resume_state(config):
    """Its manifest is that of the earlier settings: the state is newer, the checkpoints have another name."""
    made = revision(config, 1)
    write(made.path("calibration", "state", "pack", "state.json"), age=-5)
    write(made.path("final", "me2-llm4", "checkpoints-other", "model"), age=DAY)
    assert found(config) == {}


def test_an_older_revision_is_never_resumed(config):
    old = revision(config, 1, done=False)
    write(old.path("calibration", "state", "pack", "state.json"))
    revision(config, 2)
    assert found(config) == {"revisions/001/calibration/state/pack": "pack state"}


def test_old_revisions_go_but_not_the_standing_choice_nor_the_champion(config):
    for number in (1, 2, 3):
        revision(config, number)
    revision(config, 4, done=False)
    policy = with_policy(config, revisions=1)
    assert found(policy) == {"revisions/001": "old revision", "revisions/002": "old revision"}
    assert found(policy, Champions(runs=frozenset({"1-me2-llm4"}))) == {"revisions/002": "old revision"}
    assert found(policy, Champions(revisions=frozenset({2}))) == {"revisions/001": "old revision"}
    notes = " ".join(plan_cleaning(policy, Champions(revisions=frozenset({2}))).notes)
    assert "revision 2 is kept: holds the registered champion" in notes
    assert "revision 3 is kept: holds the champion" in notes


def test_a_registry_that_cannot_be_asked_keeps_every_revision(config):
    for number in (1, 2, 3):
        revision(config, number)
    cleaning = plan_cleaning(with_policy(config, revisions=1), Champions(known=False))
    assert cleaning.items == ()
    assert "could not be asked" in cleaning.notes[0]


def test_a_revision_that_was_never_opened_goes_unless_it_is_the_next(config):
    for number in (1, 3):
        revision(config, number)
    for number in (2, 4):
        write(Revision(Path(config.study), number).path("splits.json"))
    assert found(config) == {"revisions/002": "old revision"}


def test_other_adapters_go_with_their_manifest_when_the_policy_says_so(config):
    made = revision(config, 1, finals=((2, 4), (2, 2), (4, 4)))
    assert found(config) == {}
    policy = with_policy(config, other_adapters=False)
    assert found(policy) == {"revisions/001/final/me4-llm4": "other adapter"}
    assert found(policy, Champions(runs=frozenset({"1-me4-llm4"}))) == {}
    assert clean(policy) == []
    assert not made.manifest("finetune-me4-llm4").exists()
    assert made.path("final", "me2-llm2", "adapter").is_dir()
    listed_outputs_are_whole(config)


def test_the_card_of_an_adapter_goes_with_it(config):
    made = revision(config, 1, finals=((2, 4), (2, 2), (4, 4)))
    for name in ("me2-llm4", "me4-llm4"):
        finish(made, f"card-{name}", "i", [write(made.path("final", name, "adapter", "README.md"), age=DAY)], {})
    policy = with_policy(config, other_adapters=False)
    assert set(found(policy)) == {"revisions/001/final/me4-llm4"}
    assert clean(policy) == []
    assert not made.path("final", "me4-llm4").exists()
    assert not made.manifest("card-me4-llm4").exists()
    assert made.manifest("card-me2-llm4").is_file()
    listed_outputs_are_whole(config)


def compared(made, name):
    """What `mars compare` leaves of a baseline: a final run, a checkpoint for some, and a score of its own."""
    folder = made.path("final", name)
    if not folder.exists():
        write(folder / "model" / "model.safetensors", age=DAY)
        write_json(folder / "training.json", {"role": "baseline", "mlflow_run_id": f"{made.number}-{name}"})
        finish(made, f"finetune-{name}", "inputs", [folder / "model", folder / "training.json"], {})
    finish(made, f"score-{name}", "inputs", [write(folder / "test.json", age=DAY)], {})


def test_compared_runs_go_with_all_their_manifests(config):
    made = revision(config, 1, finals=((2, 4), (2, 2), (4, 4)))
    finish(made, "card-me4-llm4", "i", [write(made.path("final", "me4-llm4", "adapter", "README.md"), age=DAY)], {})
    for name in ("me4-llm4", "full-rank", "adalora", "me2-llm2"):
        compared(made, name)
    assert found(config) == {}
    policy = with_policy(config, other_adapters=False)
    expected = {f"revisions/001/final/{name}": "other adapter" for name in ("adalora", "full-rank", "me4-llm4")}
    assert found(policy) == expected
    del expected["revisions/001/final/full-rank"]
    assert found(policy, Champions(runs=frozenset({"1-full-rank"}))) == expected
    assert clean(policy) == []
    left = {path.stem for path in made.path("manifests").iterdir()}
    assert left == {
        "calibrate", "fit", "search", "finetune-me2-llm4", "finetune-me2-llm2", "score-me2-llm2",
    }  # fmt: skip
    listed_outputs_are_whole(config)
    assert found(policy) == {}


def test_a_final_run_that_another_manifest_lists_is_kept_whole(config):
    made = revision(config, 1, finals=((2, 4), (2, 2), (4, 4)))
    card = write(made.path("final", "me4-llm4", "adapter", "README.md"), age=DAY)
    finish(made, "card-me4-llm4", "i", [card], {})
    finish(made, "published", "i", [card], {})
    policy = with_policy(config, other_adapters=False)
    assert found(policy) == {}
    assert any("final/me4-llm4 is kept: a manifest lists it" in note for note in plan_cleaning(policy, NOBODY).notes)
    assert clean(policy) == []
    assert made.manifest("card-me4-llm4").is_file()
    assert made.manifest("finetune-me4-llm4").is_file()


def test_a_baseline_that_is_still_training_is_left_alone(config):
    made = revision(config, 1)
    write(made.path("final", "adalora", "checkpoints-inputs", "checkpoint-5", "model"), age=DAY)
    assert found(with_policy(config, other_adapters=False)) == {}


def test_caches_and_old_temporary_files(config):
    made = revision(config, 1)
    write(Path(config.study) / "cache" / "short-enough-1.json")
    write(made.path("calibration", ".abc.parquet.a1b2c3d4"), age=2 * DAY)
    write(made.path("calibration", ".def.parquet.e5f6g7h8"))  # perhaps being written now
    assert found(config) == {"revisions/001/calibration/.abc.parquet.a1b2c3d4": "temporary"}
    assert found(with_policy(config, caches=False))["cache/short-enough-1.json"] == "cache"


def test_a_policy_keeps_what_it_says(config):
    made = revision(config, 1)
    write(made.path("calibration", "snapshots", "abc", "8.safetensors"), age=DAY)
    write(made.path("final", "me2-llm4", "checkpoints-inputs", "model"), age=DAY)
    assert found(with_policy(config, snapshots=True, checkpoints=True)) == {}
    weighed = config.model_copy(update={"search": SearchConfig(forgetting_weight=0.5)})
    assert "snapshots" not in found(with_policy(weighed)).values()  # scored again where the upstream data change


def test_what_a_manifest_lists_is_never_found(config):
    """Even where its place is one that the policy clears."""
    made = revision(config, 1)
    snapshot = write(made.path("calibration", "snapshots", "abc", "8.safetensors"), age=DAY)
    finish(made, "refine", "i", [snapshot], {})
    cleaning = plan_cleaning(config, NOBODY)
    assert cleaning.items == ()
    assert "a manifest lists it" in cleaning.notes[0]


@pytest.mark.parametrize("linked", ["snapshots", "abc", "8.safetensors"])
def test_links_are_not_followed(config, tmp_path, linked):
    made = revision(config, 1)
    outside = write(tmp_path / "outside" / "abc" / "8.safetensors", age=DAY)
    snapshots = made.path("calibration") / "snapshots"
    places = {"snapshots": (snapshots, outside.parent.parent), "abc": (snapshots / "abc", outside.parent)}
    link, target = places.get(linked, (snapshots / "abc" / "8.safetensors", outside))
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    os.utime(link, (0, 0), follow_symlinks=False)
    clean(config)
    clean(config, include_resume=True)
    assert outside.read_text() == "x" * 100


def test_a_folder_that_became_a_link_after_planning_is_left_alone(config, tmp_path):
    made = revision(config, 1)
    snapshot = write(made.path("calibration", "snapshots", "abc", "8.safetensors"), age=DAY)
    cleaning = plan_cleaning(config, NOBODY)
    outside = write(tmp_path / "outside" / "8.safetensors")
    snapshot.unlink()
    snapshot.parent.rmdir()
    snapshot.parent.symlink_to(outside.parent)
    (failed,) = delete(config.study, cleaning.study, [Deletion(item.path, item.manifests) for item in cleaning.items])
    assert "left alone" in failed
    assert outside.is_file()


class Killed(BaseException):
    """Stands for the process being killed."""


@pytest.mark.parametrize("step", ["rename", "rmtree"])
def test_a_cleaning_that_is_killed_leaves_whole_revisions_and_is_finished_by_the_next(config, monkeypatch, step):
    for number in (1, 2, 3):
        revision(config, number, finals=((2, 4), (2, 2), (4, 4)))
    policy = with_policy(config, revisions=2, other_adapters=False)

    def killed(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed) if step == "rename" else patched.setattr(
            deletion.shutil, "rmtree", killed
        )
        with pytest.raises(Killed):
            clean(policy)
    listed_outputs_are_whole(config)
    assert clean(policy) == []
    listed_outputs_are_whole(config)
    assert found(policy) == {}
    assert not list(Path(config.study).rglob(".deleted-*"))
    assert sorted(path.name for path in (Path(config.study) / "revisions").iterdir()) == ["002", "003"]


def test_what_cannot_be_deleted_is_said_and_the_rest_goes(config, monkeypatch):
    made = revision(config, 1)
    for name in ("abc", "def"):
        write(made.path("calibration", "snapshots", name, "8.safetensors"), age=DAY)
    rename = Path.rename

    def refused(path, target):
        if path.name == "abc":
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    assert clean(config) == ["revisions/001/calibration/snapshots/abc: Permission denied"]
    assert not made.path("calibration", "snapshots", "def").exists()


@pytest.mark.parametrize("spoil", ["study.yaml", "revisions"])
def test_a_folder_that_is_no_study_is_refused(config, spoil):
    made = revision(config, 1)
    target = Path(config.study) / spoil
    target.rename(target.with_name("elsewhere"))
    with pytest.raises(ValueError, match="is not a study folder"):
        plan_cleaning(config, NOBODY)
    assert made.number == 1


def test_a_study_without_a_revision_is_refused(config):
    (Path(config.study) / "revisions").mkdir()
    with pytest.raises(ValueError, match="holds no revision yet"):
        plan_cleaning(config, NOBODY)


def test_champions_come_from_a_real_registry(config, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = Path(config.study)
    assert find_champions(study) == Champions()
    assert not (study / "mlflow.db").exists()
    client = mlflow.MlflowClient(f"sqlite:///{study / 'mlflow.db'}")
    experiment = client.create_experiment("mars/study", artifact_location=(study / "mlartifacts").as_uri())
    runs = [client.create_run(experiment, tags={"mars.revision": str(n)}).info.run_id for n in (1, 2)]
    client.create_registered_model("adapter")
    for run in runs:
        client.create_model_version("adapter", f"runs:/{run}/adapter", run)
    assert find_champions(study) == Champions()
    client.set_registered_model_alias("adapter", "champion", "1")
    assert find_champions(study) == Champions(frozenset(runs[:1]), frozenset({1}))


def test_a_registry_that_does_not_answer_is_not_known(config, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:21299")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert find_champions(Path(config.study)).known is False


@pytest.fixture
def remote(config, monkeypatch, tmp_path):
    """Three revisions of a study in a store; `be` makes this process a machine with a working copy of its own."""
    for number in (1, 2, 3):
        revision(config, number)
    store = fsspec.filesystem("memory")
    if store.exists("/studies"):
        store.rm("/studies", recursive=True)
    store.put(f"{config.study}/", "/studies/remote", recursive=True)
    config = config.model_copy(update={"study": "memory://studies/remote"})

    def be(machine):
        monkeypatch.setenv("MARS_CACHE", str(tmp_path / machine))
        pull(config.study)
        return working_folder(config.study)

    return with_policy(config, revisions=2), store, be


def stored(store):
    return {name.removeprefix("/studies/remote/") for name in store.find("/studies/remote")}


def test_a_study_at_a_url_loses_old_revisions_in_the_store_and_in_every_working_copy(remote):
    config, store, be = remote
    other, here = be("other"), be("here")
    assert [known.number for known in revisions(other)] == [1, 2, 3]
    assert not (here / "revisions/001/final/me2-llm4/adapter").exists()  # old adapters are in the store only
    before = stored(store)
    (item,) = plan_cleaning(config, NOBODY).items
    assert item.path == here.resolve() / "revisions/001"
    old = {name for name in before if name.startswith("revisions/001/")}
    assert item.size == sum(store.info(f"/studies/remote/{name}")["size"] for name in old)
    assert stored(store) == before  # planning deletes nothing
    assert clean(config) == []
    assert stored(store) == before - old
    assert not (here / "revisions/001").exists()
    be("other")
    assert [known.number for known in revisions(other)] == [2, 3]
    assert found(config) == {}
    be("here")
    assert found(config) == {}


def test_a_remote_cleaning_that_is_stopped_leaves_no_manifest_of_what_is_gone(remote, monkeypatch):
    config, store, be = remote
    be("here")
    before = len([name for name in stored(store) if name.startswith("revisions/001/")])
    left, rm_file = 4, type(store).rm_file

    def remove(self, path):
        nonlocal left
        if not left:
            raise ConnectionError("the store went away")
        left -= 1
        rm_file(self, path)

    monkeypatch.setattr(type(store), "rm_file", remove)
    with pytest.raises(OSError, match="the store went away"):
        clean(config)
    assert 0 < len([name for name in stored(store) if name.startswith("revisions/001/")]) < before
    for name in (name for name in stored(store) if "/manifests/" in name):
        outputs = json.loads(store.cat_file(f"/studies/remote/{name}"))["outputs"]
        assert all(f"{name.partition('/manifests/')[0]}/{output}" in stored(store) for output in outputs)


def test_the_accepted_final_run_is_kept_wherever_it_lies(config):
    first = revision(config, 1, finals=((2, 4), (4, 4)))
    write_json(Path(config.study) / "standing.json", {"revision": 1, "adapter": "revisions/001/final/me4-llm4/adapter"})
    revision(config, 2)
    revision(config, 3)
    policy = with_policy(config, revisions=1, other_adapters=False)
    plan_cleaning(policy, NOBODY)
    assert clean(policy) == []
    assert first.path("final", "me4-llm4").is_dir()
    assert sorted(path.name for path in (Path(config.study) / "revisions").iterdir()) == ["001", "003"]


def test_an_adapter_that_was_kept_while_it_stood_goes_with_the_other_adapters_once_it_does_not(config):
    made = revision(config, 1, finals=((2, 4), (2, 2)))
    kept = made.path("standing", "me2-llm4")
    write(kept / "adapter" / "adapter_model.safetensors", age=DAY)
    write_json(kept / "training.json", {"role": "chosen", "mlflow_run_id": "earlier"})
    write_json(
        Path(config.study) / "standing.json", {"revision": 1, "adapter": "revisions/001/standing/me2-llm4/adapter"}
    )
    policy = with_policy(config, other_adapters=False)
    assert found(policy) == {}
    write_json(Path(config.study) / "standing.json", {"revision": 1, "adapter": "revisions/001/final/me2-llm4/adapter"})
    assert found(config) == {}
    assert found(policy, Champions(runs=frozenset({"earlier"}))) == {}
    assert found(policy) == {"revisions/001/standing/me2-llm4": "other adapter"}
    assert clean(policy) == []
    assert not kept.exists()
    listed_outputs_are_whole(config)
