"""Data at URLs: what is mirrored, and that the mirror follows the store."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from mars_core.data.readers import read_samples
from tasks.config import DataConfig
from tasks.data import check_data
from tasks.storage.data import local_data
from tasks.storage.location import CACHE_VARIABLE


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def picture(red: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def rows(*images: str) -> bytes:
    turns = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "red"}]
    return json.dumps([{"image": image, "conversations": turns} for image in images]).encode()


def reasons(data: DataConfig) -> list[str]:
    return [problem.reason for problem in check_data(data).problems]


def test_named_images_are_mirrored_and_others_are_not(store):
    store.pipe_file("/bucket/data/train.json", rows("a.png", "deep/b.png"))
    for name in ("a.png", "deep/b.png", "unused.png"):
        store.pipe_file(f"/bucket/pictures/{name}", picture(1))
    data = DataConfig(train="memory://bucket/data/train.json", images="memory://bucket/pictures")
    local = local_data(data)
    samples = read_samples(local.train, local.images)
    assert [image.path for sample in samples for image in sample.images] == ["a.png", "deep/b.png"]
    assert reasons(data) == []
    folder = samples[0].images[0].folder
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.png")} == {"a.png", "deep/b.png"}


def test_images_lie_beside_the_file_unless_said_otherwise(store):
    store.pipe_file("/bucket/data/train.json", rows("a.png"))
    store.pipe_file("/bucket/data/a.png", picture(1))
    assert reasons(DataConfig(train="memory://bucket/data/train.json")) == []


def test_a_local_file_may_name_images_in_a_store(store, tmp_path):
    (tmp_path / "train.json").write_bytes(rows("a.png"))
    store.pipe_file("/bucket/pictures/a.png", picture(1))
    assert reasons(DataConfig(train=str(tmp_path / "train.json"), images="memory://bucket/pictures")) == []


def test_the_mirror_follows_the_store(store):
    data = DataConfig(train="memory://bucket/data/train.json")
    store.pipe_file("/bucket/data/train.json", rows("a.png", "b.png"))
    for name in ("a.png", "b.png"):
        store.pipe_file(f"/bucket/data/{name}", picture(1))
    local = local_data(data)
    store.pipe_file("/bucket/data/a.png", picture(2))
    store.rm_file("/bucket/data/b.png")
    samples = read_samples(local_data(data).train, local.images)
    assert (samples[0].images[0].folder / "a.png").read_bytes() == picture(2)
    assert len(reasons(data)) == 1
    assert "missing image 'b.png'" in reasons(data)[0]


def test_images_cannot_lead_out_of_the_mirror(store, tmp_path):
    store.pipe_file("/bucket/data/train.json", rows("../secret.png", "/etc/hostname"))
    store.pipe_file("/bucket/secret.png", picture(1))
    found = reasons(DataConfig(train="memory://bucket/data/train.json"))
    assert "leads outside the image folder" in found[0]
    assert "is absolute" in found[1]
    assert not list(tmp_path.rglob("secret.png"))


def test_local_data_stay_where_they_are(tmp_path):
    data = DataConfig(train=str(tmp_path / "a" / "train.json"), test=str(tmp_path / "b" / "test.json"))
    assert local_data(data) == data


def test_a_missing_dataset_file_is_named(store):
    with pytest.raises(ValueError, match=r"no dataset file at memory://bucket/data/none\.json"):
        local_data(DataConfig(train="memory://bucket/data/none.json"))


def test_files_in_several_places_need_an_image_folder(store):
    store.pipe_file("/bucket/data/train.json", rows("a.png"))
    store.pipe_file("/bucket/other/test.json", rows("b.png"))
    data = DataConfig(train="memory://bucket/data/train.json", test="memory://bucket/other/test.json")
    with pytest.raises(ValueError, match=r"say with data\.images"):
        local_data(data)
