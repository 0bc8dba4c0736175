"""What pulling and publishing promise, with two machines on one store."""

from __future__ import annotations

import json
import shutil

import pytest

from tasks.storage.files import read_json, write_json
from tasks.storage.location import working_folder
from tasks.storage.mirror import open_mirror
from tasks.storage.transfer import (
    STANDING_FILE,
    STUDY_FILE,
    StudyChangedError,
    publish_files,
    publish_newest,
    publish_part,
    pull,
    remove_stored,
)
from tests.tasks.storage.conftest import STUDY

ROOT = "/bucket/deep/study"
LAWS, MANIFEST = f"{ROOT}/revisions/001/laws.json", f"{ROOT}/revisions/001/manifests/fit.json"


def stored(store) -> set[str]:
    return {path.removeprefix(f"{ROOT}/") for path in store.find("/bucket")}


def test_another_machine_finds_the_stage_done(machine, store):
    one, two = machine("one"), machine("two")
    assert one.run("i", {"laws.json": "L"})
    assert stored(store) == {"revisions/001/laws.json", "revisions/001/manifests/fit.json"}
    assert not two.run("i", {"laws.json": "never written"})
    assert read_json(two.revision.path("laws.json")) == "L"


def test_new_inputs_are_worked_on_and_reach_the_first_machine(machine):
    one, two = machine("one"), machine("two")
    one.run("i", {"laws.json": "L"})
    assert two.run("j", {"laws.json": "M"})
    one.pull()
    assert one.is_done("j")
    assert read_json(one.revision.path("laws.json")) == "M"


def test_stale_results_never_overwrite_newer_ones(machine, store):
    one, two = machine("one"), machine("two")
    one.run("i", {"laws.json": "old"})
    one.make("j", {"laws.json": "made offline"})  # and not published: the machine was cut off
    two.run("k", {"laws.json": "newer"})
    before = store.cat_file(LAWS), store.cat_file(MANIFEST)
    with pytest.raises(StudyChangedError, match="run the same command again"):
        one.publish()
    assert (store.cat_file(LAWS), store.cat_file(MANIFEST)) == before
    assert one.is_done("k")  # and the newer ones have come down


def test_two_machines_that_finish_the_same_work_agree_on_the_first(machine, store):
    one, two = machine("one"), machine("two")
    for each in (one, two):
        each.pull()
        each.make("i", {"laws.json": f"by {each.cache.name}"})
    one.publish()
    two.publish()
    assert json.loads(store.cat_file(LAWS)) == "by one"
    assert two.is_done("i")
    assert read_json(two.revision.path("laws.json")) == "by one"


def test_unpublished_work_survives_a_pull(machine, store):
    one = machine("one")
    one.run("i", {"laws.json": "L"})
    one.make("j", {"laws.json": "M"})
    one.pull()
    assert one.is_done("j")
    one.publish()
    assert json.loads(store.cat_file(LAWS)) == "M"


def test_a_lost_or_damaged_working_copy_comes_back(machine):
    one = machine("one")
    one.run("i", {"laws.json": "L"})
    one.revision.path("laws.json").unlink()
    one.pull()
    assert one.is_done("i")
    shutil.rmtree(one.cache)
    one.pull()
    assert one.is_done("i")


def test_a_damaged_ledger_makes_the_store_win(machine):
    one = machine("one")
    one.run("i", {"laws.json": "L"})
    write_json(one.revision.path("laws.json"), "edited")
    (one.revision.study.parent / "ledger.json").write_text("{")
    one.pull()
    assert one.is_done("i")


def test_files_that_a_folder_lost_go_from_the_store_and_from_other_machines(machine, store):
    one, two = machine("one"), machine("two")
    one.run("i", {"final/p/adapter/a.json": "a", "final/p/adapter/b.json": "b"})
    two.pull()
    one.revision.path("final/p/adapter/b.json").unlink()
    one.make("j", {"final/p/adapter/a.json": "a2"})
    one.publish()
    assert "revisions/001/final/p/adapter/b.json" not in stored(store)
    two.pull()
    assert two.is_done("j")
    assert not two.revision.path("final/p/adapter/b.json").exists()


def test_removed_files_go_everywhere_but_local_changes_stay(machine, store):
    one, two, three = machine("one"), machine("two"), machine("three")
    one.run("i", {"laws.json": "L", "notes.json": "N"})
    two.pull()
    three.pull()
    write_json(three.revision.path("laws.json"), "changed here since")
    revision = one.revision
    remove_stored(STUDY, ["revisions/001/laws.json", "revisions/001/manifests/fit.json", "revisions/001/notes"])
    assert stored(store) == {"revisions/001/notes.json"}
    assert revision.path("laws.json").exists()  # what is here is the caller's to delete
    two.pull()
    assert not two.revision.path("laws.json").exists()
    assert two.revision.path("notes.json").exists()
    three.pull()
    assert read_json(three.revision.path("laws.json")) == "changed here since"


def test_runs_of_several_machines_make_one_calibration(machine, store):
    one, two = machine("one"), machine("two")
    for each in (one, two):
        each.pull()
    for each, runs in ((one, "ab"), (two, "bc")):
        files = [each.revision.path("calibration", f"{run}.json") for run in runs]
        for path in files:
            write_json(path, f"{path.stem} by {each.cache.name}")
        publish_part(STUDY, each.revision, "calibrate", files)
    for each in (one, two):
        each.pull()
        read = {run: read_json(each.revision.path("calibration", f"{run}.json")) for run in "abc"}
        assert read == {"a": "a by one", "b": "b by one", "c": "c by two"}


def test_a_run_that_is_trained_again_withdraws_the_calibration_it_belongs_to(machine, store):
    one = machine("one")
    one.run("i", {"calibration/a.json": "a"}, stage="calibrate")
    write_json(one.revision.path("calibration/a.json"), "with other checkpoints")
    publish_part(STUDY, one.revision, "calibrate", [one.revision.path("calibration/a.json")])
    assert stored(store) == {"revisions/001/calibration/a.json"}


def test_a_revision_is_opened_by_one_machine_only(machine):
    one, two = machine("one"), machine("two")
    for each in (one, two):
        each.pull()
        write_json(each.revision.path("revision.json"), {"data_hash": each.cache.name})
    publish_files(STUDY, [one.revision.path("revision.json")])
    two.be(two.cache)
    with pytest.raises(StudyChangedError):
        publish_files(STUDY, [two.revision.path("revision.json")])
    assert read_json(two.revision.path("revision.json")) == {"data_hash": "one"}


def test_caches_databases_and_checkpoints_stay_on_the_machine_that_made_them(machine, store):
    one, two = machine("one"), machine("two")
    one.run("i", {"laws.json": "L"})
    for name in ("mlflow.db", "cache/short.json", "mlartifacts/x.json"):
        write_json(working_folder(STUDY) / name, 1)
    write_json(one.revision.path("final/p/checkpoints-1/state.json"), 1)
    one.publish()
    assert stored(store) == {"revisions/001/laws.json", "revisions/001/manifests/fit.json"}
    store.pipe_file(f"{ROOT}/revisions/001/mlflow.db", b"put there by someone")
    two.pull()
    assert sorted(path.name for path in two.revision.folder.rglob("*") if path.is_file()) == ["fit.json", "laws.json"]


def test_adapters_of_older_revisions_are_not_fetched(machine, store):
    for number in ("001", "002"):
        for name in ("adapter/weights.bin", "training.json"):
            store.pipe_file(f"{ROOT}/revisions/{number}/final/p/{name}", b"x")
    one = machine("one")
    one.pull()
    found = {str(path.relative_to(one.revision.study)) for path in one.revision.study.rglob("*") if path.is_file()}
    assert found == {
        "revisions/001/final/p/training.json",
        "revisions/002/final/p/training.json",
        "revisions/002/final/p/adapter/weights.bin",
    }


def test_the_standing_choice_and_its_adapter_reach_another_machine_however_old(machine, store):
    store.pipe_file(f"{ROOT}/revisions/001/final/p/adapter/weights.bin", b"x")
    store.pipe_file(f"{ROOT}/revisions/001/final/q/adapter/weights.bin", b"x")
    store.pipe_file(f"{ROOT}/revisions/002/revision.json", b"{}")
    one, two = machine("one"), machine("two")
    one.pull()
    write_json(one.revision.study / STANDING_FILE, {"adapter": "revisions/001/final/p/adapter"})
    publish_newest(STUDY, STANDING_FILE)
    two.pull()
    assert (two.revision.study / STANDING_FILE).is_file()
    assert two.revision.path("final/p/adapter/weights.bin").read_bytes() == b"x"
    assert not two.revision.path("final/q").exists()


def test_adapters_stay_when_a_revision_becomes_old(machine, store):
    store.pipe_file(f"{ROOT}/revisions/001/final/p/adapter/weights.bin", b"x")
    one = machine("one")
    one.pull()
    store.pipe_file(f"{ROOT}/revisions/002/revision.json", b"{}")
    one.pull()
    assert one.revision.path("final/p/adapter/weights.bin").read_bytes() == b"x"


def test_names_that_would_leave_the_working_copy_are_not_fetched(machine, store):
    store.pipe_file(f"{ROOT}/revisions/001/../../../../evil.json", b"x")
    store.pipe_file(f"{ROOT}/revisions/001/laws.json", b"x")
    one = machine("one")
    one.pull()
    assert [path.name for path in one.cache.rglob("*.json") if path.name != "ledger.json"] == ["laws.json"]
    assert not list(one.cache.parent.rglob("evil.json"))


def test_an_emptied_store_is_refused_rather_than_mirrored(machine, store):
    one = machine("one")
    one.run("i", {"laws.json": "L"})
    store.rm("/bucket", recursive=True)
    with pytest.raises(ValueError, match="is empty, but this machine has a working copy"):
        one.pull()
    assert one.is_done("i")


def test_outputs_that_changed_after_their_stage_are_not_published(machine, store):
    one = machine("one")
    one.make("i", {"laws.json": "L"})
    write_json(one.revision.path("laws.json"), "edited")
    with pytest.raises(RuntimeError, match="changed since: run it again"):
        one.publish()
    assert stored(store) == set()


def test_the_last_study_file_stands(machine, store):
    for name in ("one", "two", "one"):
        each = machine(name)
        each.be(each.cache)
        working_folder(STUDY).mkdir(parents=True, exist_ok=True)
        (working_folder(STUDY) / "study.yaml").write_text(f"study: {name}")
        publish_newest(STUDY, STUDY_FILE)
        assert store.cat_file(f"{ROOT}/study.yaml").decode() == f"study: {name}"


def test_unchanged_files_are_not_read_again(machine, store, monkeypatch):
    one = machine("one")
    one.run("i", {"laws.json": "L"})
    mirror = open_mirror(STUDY, "studies")
    calls = []
    for verb in ("get", "get_file", "put_file", "rm_file"):
        monkeypatch.setattr(type(mirror.filesystem), verb, lambda *args, _verb=verb, **kw: calls.append(_verb))
    assert not one.run("i", {})
    assert calls == []


def test_a_local_study_is_not_touched(tmp_path):
    pull(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
