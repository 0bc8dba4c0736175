from __future__ import annotations

import math

import pytest

from tasks.storage.files import read_json, replacing, replacing_folder, write_json
from tasks.storage.folder import Revision, finish, is_finished, outputs_hash, revisions


@pytest.fixture
def revision(tmp_path):
    return Revision(tmp_path, 1)


def test_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_folder_write_that_fails_leaves_the_old_folder(tmp_path):
    with replacing_folder(tmp_path / "f") as temporary:
        (temporary / "x").write_text("old")
    with pytest.raises(RuntimeError), replacing_folder(tmp_path / "f") as temporary:  # noqa: PT012
        (temporary / "x").write_text("new")
        raise RuntimeError
    assert (tmp_path / "f" / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": math.nan})
    assert not (tmp_path / "a.json").exists()


def test_broken_json_says_what_to_do(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="delete it and run its stage again"):
        read_json(tmp_path / "a.json")


def test_stage_is_finished_only_with_its_inputs_and_outputs(revision):
    output = revision.path("out.json")
    write_json(output, 1)
    finish(revision, "fit", "inputs", [output], {})
    assert is_finished(revision, "fit", "inputs")
    assert not is_finished(revision, "fit", "other inputs")
    assert not is_finished(revision, "search", "inputs")
    write_json(output, 2)
    assert not is_finished(revision, "fit", "inputs")
    output.unlink()
    assert not is_finished(revision, "fit", "inputs")


def test_a_changed_output_is_named(revision, capsys):
    output = revision.path("laws.json")
    write_json(output, 1)
    finish(revision, "fit", "inputs", [output], {})
    data = bytearray(output.read_bytes())
    data[0] ^= 1
    output.write_bytes(data)
    assert not is_finished(revision, "fit", "inputs")
    assert f"{output} has changed since, so the stage has to run again" in capsys.readouterr().err
    output.unlink()
    assert not is_finished(revision, "fit", "inputs")
    assert "laws.json is gone" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", '{"stage": "fit"', "[]", "{}"])
def test_a_damaged_manifest_is_named_and_its_stage_can_run_again(revision, text, capsys):
    output = revision.path("laws.json")
    write_json(output, 1)
    finish(revision, "fit", "inputs", [output], {})
    revision.manifest("fit").write_text(text, encoding="utf-8")
    assert not is_finished(revision, "fit", "inputs")
    assert "manifests/fit.json is damaged" in capsys.readouterr().err
    finish(revision, "fit", "inputs", [output], {})
    assert is_finished(revision, "fit", "inputs")


def test_equal_outputs_hash_alike(revision):
    output = revision.path("folder", "x.json")
    write_json(output, 1)
    finish(revision, "fit", "a", [output.parent], {"seconds": 1.0})
    first = outputs_hash(revision, "fit")
    finish(revision, "fit", "b", [output.parent], {"seconds": 2.0})
    assert outputs_hash(revision, "fit") == first


def test_stage_that_has_not_run_is_named(revision):
    with pytest.raises(ValueError, match=r"run `mars calibrate` first"):
        outputs_hash(revision, "calibrate")


def test_paths_stay_in_the_revision(revision):
    with pytest.raises(ValueError, match="outside the revision folder"):
        revision.path("..", "..", "etc")


def test_revisions_are_listed_in_order(tmp_path):
    for number in (2, 1000, 1, 10):
        write_json(Revision(tmp_path, number).path("revision.json"), {})
    Revision(tmp_path, 11).folder.mkdir()  # killed before it was opened to the end
    (tmp_path / "revisions" / "notes").mkdir()
    assert [revision.number for revision in revisions(tmp_path)] == [1, 2, 10, 1000]
