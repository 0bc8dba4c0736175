"""A study's data from its files: formats, named splits, near duplicates, and what is remembered of images."""

from __future__ import annotations

import io
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tasks.inputs.image_cache
from mars_core.data.image_fingerprints import fingerprint_of
from mars_core.data.records import PathImage
from tasks.inputs.data import check_data, load_data
from tasks.inputs.image_cache import fingerprint_all, remembered_fingerprints
from tasks.settings.data import DataConfig


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MARS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "image-looks.sqlite"


def picture(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(cells).resize((120, 90), Image.BICUBIC)


@pytest.fixture
def dataset(tmp_path):
    """Writes messages JSONL about pictures with the numbers given; `.5` is a smaller copy."""

    def write(name: str, numbers: list[float]) -> str:
        lines = []
        for number in numbers:
            whole = picture(int(number))
            image = whole if number == int(number) else whole.resize((80, 60))
            image.save(tmp_path / f"{number}.png")
            messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": f"Number {number}."}]
            lines.append(json.dumps({"messages": messages, "images": [f"{number}.png"]}))
        path = tmp_path / name
        path.write_text("\n".join(lines))
        return str(path)

    return write


def test_near_duplicates_stay_on_one_side_of_a_split_made_here(dataset):
    train = dataset("d.jsonl", [number + half for number in range(15) for half in (0, 0.5)])
    data = load_data(DataConfig(train=train, validation_samples=6, test_samples=6))
    sides = {}
    for part in ("train", "validation", "test"):
        for sample in getattr(data.splits, part):
            sides.setdefault(int(float(sample.images[0].path.removesuffix(".png"))), set()).add(part)
    assert len(sides) == 15
    assert all(len(side) == 1 for side in sides.values())


def test_near_duplicates_of_given_files_are_reported_with_files_and_rows(dataset):
    train, validation = dataset("t.jsonl", [0, 1, 2, 3, 4, 5]), dataset("v.jsonl", [9, 2.5])
    config = DataConfig(train=train, validation=validation, test_samples=2)
    (note,) = check_data(config).notes
    near = f"2.png in train ({train}, row 3 (line 3)) and 2.5.png in validation ({validation}, row 2 (line 2))"
    assert note == f"nearly the same image in two splits: {near}"
    splits = load_data(config).splits
    if any(sample.images[0].path == "2.png" for sample in splits.train):
        assert "1 image is nearly the same in more than one split" in splits.notes[-1]


def test_a_folder_with_named_splits_gives_each_part_its_own(tmp_path):
    problem = {"question": "Which?", "choices": ["a", "b"], "answer": 0, "subject": "s"}
    problems = {str(pid): problem | {"question": f"Which {pid}?"} for pid in range(6)}
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    names = list(problems)
    (tmp_path / "pid_splits.json").write_text(
        json.dumps({"train": names[:3], "val": names[3:5], "minitest": names[5:]})
    )
    here = str(tmp_path)
    splits = load_data(DataConfig(train=here, validation=here, test=here, test_split="minitest")).splits
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [3, 2, 1]
    with pytest.raises(ValueError, match="no split 'test': it holds train, val, minitest"):
        load_data(DataConfig(train=here, validation=here, test=here))


@pytest.fixture
def science(tmp_path) -> str:
    """A ScienceQA folder of text-only problems: 6 to train on, 2 to validate, 8 to test, in two subjects."""
    problem = {"question": "Which?", "choices": ["a", "b"], "answer": 0}
    subjects = ["social science", "natural science"]
    problems = {str(pid): problem | {"question": f"Which {pid}?", "subject": subjects[pid % 2]} for pid in range(16)}
    names = list(problems)
    splits = {"train": names[:6], "val": names[6:8], "trainval": names[:8], "test": names[8:]}
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps(splits))
    return str(tmp_path)


def test_a_given_test_set_is_cut_where_asked_and_smaller_cuts_are_part_of_larger(science):
    def tested(size: int | None) -> list[str]:
        config = DataConfig(
            train=science, train_split="trainval", test=science, validation_samples=2, test_samples=size
        )
        splits = load_data(config).splits
        assert (len(splits.train), len(splits.validation)) == (6, 2)
        assert {sample.id for sample in splits.test} <= {str(pid) for pid in range(8, 16)}
        said = [note for note in splits.notes if note.startswith(f"{size} of the 8 test samples given")]
        assert len(said) == (size is not None and size < 8)
        if size in (2, 4):  # half of each subject
            assert sorted(sample.task for sample in splits.test).index("social science") == size // 2
        return [sample.id for sample in splits.test]

    assert set(tested(2)) < set(tested(4)) < set(tested(None))
    assert tested(None) == tested(500) == [str(pid) for pid in range(8, 16)]


def test_two_parts_that_read_the_same_rows_are_refused(science):
    """There is no image that would tell."""
    config = DataConfig(train=science, train_split="trainval", validation=science, test=science)
    with pytest.raises(ValueError, match=r"data\.train and data\.validation both read .*problems\.json, row 7"):
        load_data(config)


def test_an_image_in_two_given_files_is_refused_or_noted(dataset):
    train, test = dataset("t.jsonl", [0, 1, 2, 3, 4]), dataset("u.jsonl", [7, 8, 9, 1])
    config = {"train": train, "test": test, "validation_samples": 1}
    with pytest.raises(ValueError, match=r"data\.shared_images: note"):
        load_data(DataConfig(**config))
    splits = load_data(DataConfig(**config, shared_images="note")).splits
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (5, 4)
    assert any(note.startswith("1 image is the same in more than one split") for note in splits.notes)


def test_an_unchanged_image_is_decoded_once(dataset, tmp_path, monkeypatch, cache):
    dataset("d.jsonl", [1, 2])
    images = [PathImage("1.png", tmp_path), PathImage("2.png", tmp_path)]
    first = fingerprint_all(images)
    seen = []
    monkeypatch.setattr(tasks.inputs.image_cache, "fingerprint_of", lambda image: seen.append(image) or first[image])
    assert fingerprint_all(images) == first
    assert seen == []
    with remembered_fingerprints() as look:
        assert {image: look(image) for image in images} == first
    assert seen == []
    picture(7).save(tmp_path / "2.png")
    fingerprint_all(images)
    assert seen == images[1:]
    assert cache.is_file()


def test_an_image_is_known_by_its_bytes_not_by_size_and_time(tmp_path):
    image, file = PathImage("a.bmp", tmp_path), tmp_path / "a.bmp"  # not compressed: other pixels, the same size
    picture(1).save(file)
    before, status = fingerprint_all([image])[image], file.stat()
    picture(2).save(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    after = fingerprint_all([image])[image]
    assert after == fingerprint_of(image) != before


def test_images_in_a_table_that_kept_its_size_and_time_are_read_again(tmp_path):
    def row(seed: int) -> dict:
        buffer = io.BytesIO()
        picture(seed).save(buffer, "BMP")  # not compressed: other pixels, the same size
        conversations = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A picture."}]
        return {"image": {"bytes": buffer.getvalue(), "path": "a.bmp"}, "conversations": conversations}

    def write(first: int) -> str:
        rows = pa.Table.from_pylist([row(first + number) for number in range(20)])
        pq.write_table(rows, tmp_path / "d.parquet", compression="none", use_dictionary=False)
        return str(tmp_path / "d.parquet")

    config = DataConfig(train=write(0), validation_samples=1, test_samples=1)
    file = Path(config.train)
    status = file.stat()
    first = load_data(config).digests
    write(20)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert load_data(config).digests != first


def test_a_cache_that_cannot_be_written_is_done_without(dataset, tmp_path, monkeypatch):
    dataset("d.jsonl", [1])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MARS_CACHE", str(tmp_path / "file"))
    with remembered_fingerprints() as look:
        assert look(PathImage("1.png", tmp_path)).size == (120, 90)


def with_another_table(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE looks_with_frames (content TEXT PRIMARY KEY)")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(b"no database" * 1000),
        lambda file: file.mkdir(),
        with_another_table,
    ],
    ids=["no database", "a folder", "another table"],
)
def test_a_damaged_cache_is_said_and_done_without(dataset, tmp_path, cache, spoil, capsys):
    dataset("d.jsonl", [1, 2])
    cache.parent.mkdir()
    spoil(cache)
    images = [PathImage("1.png", tmp_path), PathImage("2.png", tmp_path)]
    with remembered_fingerprints() as look:
        assert {image: look(image) for image in images} == fingerprint_all(images)
    assert str(cache) in capsys.readouterr().err


def test_a_cache_that_is_damaged_in_its_middle_is_done_without(dataset, tmp_path, cache):
    numbers = list(range(40))
    dataset("d.jsonl", numbers)
    images = [PathImage(f"{number}.png", tmp_path) for number in numbers]
    first = fingerprint_all(images)
    content = bytearray(cache.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)  # the first page, with header and schema, stays
    cache.write_bytes(content)
    assert fingerprint_all(images) == first


def test_what_was_seen_is_kept_for_later_commands_also_where_a_command_fails(dataset, tmp_path, monkeypatch):
    dataset("d.jsonl", [1])
    image = PathImage("1.png", tmp_path)
    with pytest.raises(ValueError, match="stopped"), remembered_fingerprints() as look:  # noqa: PT012
        first = look(image)
        raise ValueError("stopped")
    monkeypatch.setattr(tasks.inputs.image_cache, "fingerprint_of", lambda image: pytest.fail("decoded again"))
    assert fingerprint_all([image]) == {image: first}
