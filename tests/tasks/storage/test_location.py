from __future__ import annotations

from pathlib import Path

import pytest

from tasks.settings.study import StudyConfig, read_study
from tasks.storage.location import address, check_location, is_remote, study_key, working_folder


@pytest.mark.parametrize("location", ["/data/study", "study", "file:///data/study"])
def test_paths_are_their_own_working_folder(location):
    assert not is_remote(location)
    assert working_folder(location) == Path(location.removeprefix("file://"))


def test_a_url_has_its_working_copy_in_the_cache_under_its_own_name(tmp_path, monkeypatch):
    monkeypatch.setenv("MARS_CACHE", str(tmp_path))
    folder = working_folder("s3://bucket/team/llava")
    assert folder.name == "llava"
    assert folder.is_relative_to(tmp_path)
    assert folder == working_folder("s3://bucket/team/llava/")
    assert folder != working_folder("s3://other/team/llava")


def test_users_see_the_url_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MARS_CACHE", str(tmp_path))
    study = "s3://bucket/llava"
    report = working_folder(study) / "revisions" / "001" / "report.html"
    assert address(study, report) == "s3://bucket/llava/revisions/001/report.html"
    assert address(str(tmp_path), tmp_path / "report.html") == str(tmp_path / "report.html")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("s33://bucket/study", "no protocol 's33'"),
        ("s3://key:secret@bucket/study", "holds a password"),
        ("simplecache::s3://bucket/study", "chains several file systems"),
        ("s3://", "names no folder"),
    ],
)
def test_urls_that_are_no_study_folder(location, message):
    with pytest.raises(ValueError, match=message) as raised:
        StudyConfig(study=location, model="m", data={"train": "t"})
    assert "secret" not in str(raised.value).replace("input_value", "").split("[type=")[0]


def test_a_password_is_not_repeated():
    with pytest.raises(ValueError, match=r"\*\*\*@bucket") as raised:
        check_location("s3://key:secret@bucket/study")
    assert "secret" not in str(raised.value)


def test_study_file_at_a_url_is_the_centre_of_its_relative_paths(store):
    store.pipe_file("/bucket/study.yaml", b"study: out\nmodel: some/model\ndata: {train: data/t.json, images: /abs}\n")
    config = read_study("memory://bucket/study.yaml")
    assert config.study == "memory://bucket/out"
    assert config.data.train == "memory://bucket/data/t.json"
    assert config.data.images == "/abs"
    assert config.model == "some/model"


def test_study_file_that_is_not_at_its_url(store):
    with pytest.raises(ValueError, match=r"there is no study file memory://bucket/none\.yaml"):
        read_study("memory://bucket/none.yaml")


def test_a_study_at_a_url_is_the_same_one_on_every_machine(tmp_path, monkeypatch):
    keys = set()
    for machine in ("one", "two"):
        monkeypatch.setenv("MARS_CACHE", str(tmp_path / machine))
        keys.add(study_key(working_folder("s3://bucket/study")))
    assert len(keys) == 1
    assert study_key(working_folder("s3://bucket/other/study")) not in keys
    assert study_key(tmp_path / "study") != study_key(tmp_path / "other" / "study")
