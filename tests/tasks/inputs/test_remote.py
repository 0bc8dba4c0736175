"""Data at URLs: what is mirrored, and that the mirror follows the store."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image

from mars_core.data.readers import read_samples
from tasks.inputs.data import check_data, load_data
from tasks.inputs.remote import local_data
from tasks.settings.data import DataConfig
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
    with pytest.raises(ValueError, match=r"no dataset file or folder at memory://bucket/data/none\.json"):
        local_data(DataConfig(train="memory://bucket/data/none.json"))


def test_files_in_several_places_need_an_image_folder(store):
    store.pipe_file("/bucket/data/train.json", rows("a.png"))
    store.pipe_file("/bucket/other/test.json", rows("b.png"))
    data = DataConfig(train="memory://bucket/data/train.json", test="memory://bucket/other/test.json")
    with pytest.raises(ValueError, match=r"say with data\.images"):
        local_data(data)


def read_parts(data: DataConfig) -> dict[str, list]:
    local = local_data(data)
    given = {part: path for part in ("train", "validation", "test") if (path := getattr(local, part))}
    return {
        part: read_samples(path, local.images, data.format, getattr(data, f"{part}_split"))
        for part, path in given.items()
    }


def put_scienceqa(store, folder: str) -> None:
    problem = {"question": "Which?", "choices": ["a", "b"], "answer": 1, "image": "image.png", "subject": "physics"}
    problems = {"1": problem | {"split": "train"}, "2": problem | {"split": "test"}, "3": problem | {"split": "train"}}
    store.pipe_file(f"{folder}/problems.json", json.dumps(problems).encode())
    # Not the splits that the problems themselves name: problem 3 is in neither.
    store.pipe_file(f"{folder}/pid_splits.json", json.dumps({"train": ["1"], "test": ["2"]}).encode())
    for red, name in enumerate(("train/1", "test/2", "train/3")):
        store.pipe_file(f"{folder}/images/{name}/image.png", picture(60 * red))


@pytest.mark.parametrize("named", ["", "/problems.json"], ids=["folder", "file"])
def test_scienceqa_comes_with_its_splits_and_images(store, named):
    put_scienceqa(store, "/bucket/sqa")
    url = f"memory://bucket/sqa{named}"
    data = DataConfig(train=url, test=url)
    parts = read_parts(data)
    assert {part: [sample.id for sample in samples] for part, samples in parts.items()} == {
        "train": ["1"],
        "test": ["2"],
    }
    assert reasons(data) == []
    folder = parts["train"][0].images[0].folder
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")} == {
        "train/1/image.png",
        "test/2/image.png",
    }


def test_json_lines_of_messages_bring_the_images_of_their_blocks(store):
    content = [{"type": "image", "image": "in/a.png"}, {"type": "text", "text": "what?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
    store.pipe_file("/bucket/data/train.jsonl", json.dumps({"messages": messages}).encode() + b"\n")
    store.pipe_file("/bucket/data/in/a.png", picture(1))
    assert reasons(DataConfig(train="memory://bucket/data/train.jsonl")) == []


def put_folder(store, folder, url: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            store.pipe_file(f"{url}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def table(red: int, rows: int = 3) -> dict[str, list]:
    return {
        "image": [{"bytes": picture(red + row), "path": None} for row in range(rows)],
        "question": ["what?"] * rows,
        "answer": [f"red {red + row}" for row in range(rows)],
    }


def test_a_folder_of_datasets_with_several_splits(store, tmp_path):
    splits = {"train": Dataset.from_dict(table(0)), "test": Dataset.from_dict(table(100, 2))}
    DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    put_folder(store, tmp_path / "saved", "/bucket/saved")
    data = DataConfig(train="memory://bucket/saved", test="memory://bucket/saved")
    answers = {part: [sample.answers for sample in samples] for part, samples in read_parts(data).items()}
    assert answers == {"train": [("red 0",), ("red 1",), ("red 2",)], "test": [("red 100",), ("red 101",)]}
    assert reasons(data) == []


def test_tables_in_several_places_that_hold_their_images_need_no_image_folder(store, tmp_path):
    for name, red in (("train", 0), ("test", 100)):
        pq.write_table(pa.table(table(red, 8)), tmp_path / "part.parquet")
        store.pipe_file(f"/bucket/{name}/data/{name}-00000-of-00001.parquet", (tmp_path / "part.parquet").read_bytes())
        store.pipe_file(f"/bucket/{name}/README.md", b"not wanted")
    data = DataConfig(train="memory://bucket/train", test="memory://bucket/test", validation_samples=2)
    assert {part: len(samples) for part, samples in read_parts(data).items()} == {"train": 8, "test": 8}
    assert reasons(data) == []
    assert not list((tmp_path / "cache").rglob("README.md"))


def test_a_folder_follows_the_store(store, tmp_path):
    shards = [f"/bucket/data/train-0000{number}-of-00002.parquet" for number in range(2)]
    for number, shard in enumerate(shards):
        pq.write_table(pa.table(table(100 * number, 8)), tmp_path / "part.parquet")
        store.pipe_file(shard, (tmp_path / "part.parquet").read_bytes())
    data = DataConfig(train="memory://bucket/data", validation_samples=2, test_samples=2)
    before = load_data(data)
    store.rm_file(shards[1])
    assert len(read_parts(data)["train"]) == 8
    assert load_data(data).data_hash != before.data_hash


def test_a_folder_without_a_dataset_is_named(store):
    store.pipe_file("/bucket/data/deep/notes.txt", b"")
    with pytest.raises(ValueError, match=r"no dataset in the folder memory://bucket/data: expected Parquet"):
        local_data(DataConfig(train="memory://bucket/data"))
