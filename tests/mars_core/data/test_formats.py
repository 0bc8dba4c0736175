"""Every format with an independent writer: what people's tools write is what is read."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mars_core.data.check import check_samples
from mars_core.data.images import image_bytes, load_image
from mars_core.data.readers import detect_format, read_rows, read_samples
from mars_core.data.readers.json_records import records
from mars_core.data.records import BadRow, PathImage, Sample, Turn

ASK, ANSWER = {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog."}
TURNS = (Turn("user", "<image>\nWhat is it?"), Turn("assistant", "A dog."))
PROBLEM = {
    "question": "Which is a dog?",
    "choices": ["Rex", "Tom"],
    "answer": 1,
    "hint": "Look well.",
    "image": "image.png",
    "subject": "natural science",
    "split": "train",
}
PROMPT = (
    "Context: Look well.\nWhich is a dog?\nA. Rex\nB. Tom\n"
    "Answer with the option's letter from the given choices directly."
)


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (6, 5), (shade, 0, 0))


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    picture(shade).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path):
    def write(rows: list, name: str = "data.json") -> Path:
        path = tmp_path / name
        lines = name.endswith("l")
        text = "\n".join(map(json.dumps, rows)) + "\n" if lines else json.dumps(rows, indent=1)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_sharegpt(write, tmp_path, name):
    rows = [
        {"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Yes."}], "images": []},
        {"conversations": [ASK, ANSWER], "images": ["a.png"], "system": "Be brief.", "task": "naming"},
    ]
    path = write(rows, name)
    assert detect_format(path) == "sharegpt"
    one, two = read_samples(path)
    assert one.task == "text-only"
    assert (two.turns, two.images) == ((Turn("system", "Be brief."), *TURNS), (PathImage("a.png", tmp_path),))
    assert two.task == "naming"
    assert str(two.source) == f"{path}, row 2 (line {2 if name.endswith('l') else 15})"


def test_sharegpt_with_messages_when_forced(write, tmp_path):
    path = write([{"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "Yes."}]}])
    (sample,) = read_samples(path, format="sharegpt")
    assert sample.turns == (Turn("user", "<image>?"), Turn("assistant", "Yes."))


@pytest.mark.parametrize(
    ("content", "images"),
    [
        ("<image>\nWhat is it?", ["a.png"]),
        ("What is it?", ["a.png"]),
        ([{"type": "image"}, {"type": "text", "text": "\nWhat is it?"}], ["a.png"]),
        ([{"type": "image", "image": "a.png"}, {"type": "text", "text": "\nWhat is it?"}], None),
        ([{"type": "image", "path": "a.png"}, {"type": "text", "text": "\nWhat is it?"}], None),
        ([{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "\nWhat is it?"}], None),
        ("What is it?", [{"path": "a.png"}]),
    ],
)
def test_messages_in_all_their_forms(write, tmp_path, content, images):
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "A dog."}]
    path = write([{"messages": messages} | ({"images": images} if images else {})], "data.jsonl")
    assert detect_format(path) == "messages"
    (sample,) = read_samples(path)
    assert (sample.turns, sample.images) == (TURNS, (PathImage("a.png", tmp_path),))


def test_messages_with_several_images_turns_and_a_system_prompt(write, tmp_path):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "image": name} for name in ("a.png", "b.png")]},
        {"role": "assistant", "content": [{"type": "text", "text": "Two."}]},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    (sample,) = read_samples(write([{"messages": messages}], "data.jsonl"))
    assert [turn.text for turn in sample.turns] == ["Be brief.", "<image><image>", "Two.", "Sure?", "Yes."]
    assert [str(image) for image in sample.images] == ["a.png", "b.png"]
    assert sample.answers == ("Two.", "Yes.")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{"role": "user", "content": "a"}], "images": ["https://x/y.png"]}, "is a URL or inline data"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "data:image/png;base64,AA"}]}]},
            "is a URL or inline data",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}], "images": ["b.png"]},
            "images are named both in `images` and in content blocks",
        ),
        ({"messages": [{"role": "tool", "content": "a"}]}, "unknown speaker 'tool'"),
        ({"text": "a"}, "no `messages`, only 'text'"),
    ],
)
def test_bad_message_rows_are_named_by_line(write, row, reason):
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = write([good, row], "data.jsonl")
    _, bad = read_rows(path)
    assert isinstance(bad, BadRow)
    assert (bad.source.row, bad.source.line) == (2, 2)
    assert reason in bad.reason


def test_a_broken_line_spoils_only_itself(tmp_path):
    good = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    path = tmp_path / "data.jsonl"
    path.write_text(f"{good}\n\n{good[:-4]}\n{good}\n")
    rows = list(read_rows(path))
    assert [isinstance(row, Sample) for row in rows] == [True, False, True]
    assert rows[1].source.line == 3
    assert "not valid JSON" in rows[1].reason


def test_a_broken_list_gives_what_stands_before_the_break(write):
    path = write([{"conversations": [ANSWER]}] * 3)
    path.write_text(path.read_text()[:-20])
    rows = list(read_rows(path))
    assert [isinstance(row, Sample) for row in rows] == [True, True, False]
    assert "nothing behind it can be read" in rows[2].reason


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(
    values=st.lists(json_values, max_size=6),
    indent=st.sampled_from([None, 2]),
    ascii=st.booleans(),
    chunk=st.integers(1, 40),
)
@settings(max_examples=75, deadline=None)
def test_records_of_a_list_are_those_of_the_json_module(tmp_path_factory, values, indent, ascii, chunk):
    """However small the window, and each record can be read again from its place."""
    path = tmp_path_factory.getbasetemp() / "records.json"
    text = json.dumps(values, indent=indent, ensure_ascii=ascii)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mars_core.data.readers.json_records._CHUNK", chunk)
        found = list(records(path))
    assert [record.value for record in found] == values
    data = path.read_bytes()
    for record, value in zip(found, values, strict=True):
        assert json.loads(data[record.start : record.start + record.length]) == value
        assert record.line == data[: record.start].count(b"\n") + 1


def test_a_large_file_is_never_held_whole(tmp_path):
    """Python's own count of memory: far below the file while it is read and while all samples are kept."""
    path = tmp_path / "large.json"
    talk = [{"from": "human", "value": "<image>\n" + "What? " * 100}, {"from": "gpt", "value": "A dog. " * 200}]
    with path.open("w") as stream:
        row = json.dumps({"image": "a.png", "conversations": talk})
        stream.write("[" + ",".join([row] * 10_000) + "]")
    size = path.stat().st_size
    tracemalloc.start()
    samples = read_samples(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(samples) == 10_000
    assert peak < size / 2
    assert samples[-1].turns[1].text == ("A dog. " * 200).strip()


def test_a_file_that_changes_under_its_samples_is_noticed(write):
    path = write([{"conversations": [ASK, ANSWER]}])
    (sample,) = read_samples(path)
    path.write_text(path.read_text() + " ")
    with pytest.raises(ValueError, match=r"data\.json changed while it was in use"):
        len(sample.turns)


@pytest.fixture
def scienceqa(tmp_path) -> Path:
    folder = tmp_path / "scienceqa"
    problems = {"7": PROBLEM, "8": PROBLEM | {"image": None, "hint": ""}, "9": PROBLEM | {"split": "val", "answer": 0}}
    for pid, problem in problems.items():
        if problem["image"]:
            place = folder / "images" / problem["split"] / pid
            place.mkdir(parents=True)
            picture(int(pid)).save(place / "image.png")
    (folder / "problems.json").write_text(json.dumps(problems))
    splits = {"train": ["7", "8"], "val": ["9"], "trainval": ["7", "8", "9"]}
    (folder / "pid_splits.json").write_text(json.dumps(splits))
    return folder


def test_scienceqa(scienceqa):
    assert detect_format(scienceqa) == "scienceqa"
    one, two = read_samples(scienceqa, split="train")
    assert one.turns == (Turn("user", f"<image>\n{PROMPT}"), Turn("assistant", "B"))
    assert (one.id, one.task, load_image(one.images[0]).getpixel((0, 0))) == ("7", "natural science", (7, 0, 0))
    assert (two.images, two.turns[0].text) == ((), PROMPT.removeprefix("Context: Look well.\n"))
    (nine,) = read_samples(scienceqa, split="validation")
    assert (nine.id, nine.answers) == ("9", ("A",))
    assert len(read_samples(scienceqa / "problems.json", split="trainval")) == 3
    check_samples([one, two, nine]).raise_if_bad()


def test_scienceqa_without_pid_splits(scienceqa):
    (scienceqa / "pid_splits.json").unlink()
    assert [sample.id for sample in read_samples(scienceqa, split="train")] == ["7", "8"]
    with pytest.raises(ValueError, match=r"has no split 'test': it holds train, val; name one of them"):
        read_samples(scienceqa, split="test")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": 2}, "`answer` must be the number of a choice, 0 to 1, got 2"),
        ({"choices": ["one"]}, "`choices` must be a list of 2 to 10 texts"),
        ({"question": None}, "`question` must be text, got None"),
    ],
)
def test_bad_problems_are_named(scienceqa, change, reason):
    problems = json.loads((scienceqa / "problems.json").read_text())
    problems["8"] |= change
    (scienceqa / "problems.json").write_text(json.dumps(problems))
    _, bad = read_rows(scienceqa, split="train")
    assert bad.source.row == 2
    assert bad.reason.startswith(f"problem 8: {reason}")


def columns() -> dict:
    messages = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "\nWhat is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
    ]
    return {"images": [[picture(row)] for row in range(5)], "messages": [messages] * 5, "task": ["naming"] * 5}


def saved_dataset() -> datasets.Dataset:
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "messages": [
                {
                    "role": datasets.Value("string"),
                    "content": [{"type": datasets.Value("string"), "text": datasets.Value("string")}],
                }
            ],
            "task": datasets.Value("string"),
        }
    )
    return datasets.Dataset.from_dict(columns(), features=features)


def require_columns_read(samples: list[Sample]) -> None:
    assert [sample.turns for sample in samples] == [TURNS] * 5
    assert [load_image(sample.images[0]).getpixel((0, 0))[0] for sample in reversed(samples)] == [4, 3, 2, 1, 0]
    assert {sample.task for sample in samples} == {"naming"}


def test_a_folder_saved_by_datasets(tmp_path):
    saved_dataset().save_to_disk(tmp_path / "saved", num_shards=2)
    assert detect_format(tmp_path / "saved") == "datasets"
    require_columns_read(read_samples(tmp_path / "saved"))


def test_splits_saved_by_datasets(tmp_path):
    whole = saved_dataset()
    datasets.DatasetDict({"train": whole, "test": whole.select([3])}).save_to_disk(tmp_path / "saved")
    require_columns_read(read_samples(tmp_path / "saved", split="train"))
    assert len(read_samples(tmp_path / "saved", split="test")) == 1
    with pytest.raises(ValueError, match=r"has several splits: it holds train, test; name one of them"):
        read_samples(tmp_path / "saved")
    next((tmp_path / "saved" / "test").glob("*.arrow")).unlink()
    with pytest.raises(ValueError, match=r"data-00000-of-00001\.arrow is missing"):
        read_samples(tmp_path / "saved", split="test")


def test_parquet_shards_as_the_hub_stores_them(tmp_path):
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    whole = saved_dataset()
    whole.select([0, 1]).to_parquet(folder / "train-00000-of-00002.parquet")
    whole.select([2, 3, 4]).to_parquet(folder / "train-00001-of-00002.parquet")
    whole.select([1]).to_parquet(folder / "test-00000-of-00001.parquet")
    assert detect_format(tmp_path / "hub") == "parquet"
    require_columns_read(read_samples(tmp_path / "hub", split="train"))
    assert len(read_samples(tmp_path / "hub", split="test")) == 1


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train-00000-of-00001-1c06a67d80bbbd1d", "test-00000-of-00001-8b1e7b4b7f4ae38c"),  # the Hub's older names
        ("train", "test"),
        ("my-data_Train", "my-data_Test"),
    ],
)
def test_the_names_of_parquet_files_tell_their_splits(tmp_path, train, test):
    whole = saved_dataset()
    whole.to_parquet(tmp_path / f"{train}.parquet")
    whole.select([3]).to_parquet(tmp_path / f"{test}.parquet")
    require_columns_read(read_samples(tmp_path, split="train"))
    assert [load_image(row.images[0]).getpixel((0, 0))[0] for row in read_samples(tmp_path, split="test")] == [3]
    with pytest.raises(ValueError, match="no split 'validation'"):
        read_samples(tmp_path, split="validation")


def test_parquet_files_that_tell_no_split_are_one_dataset(tmp_path):
    for row, name in enumerate(("captions", "questions-of-cats", "contest")):
        saved_dataset().select([row]).to_parquet(tmp_path / f"{name}.parquet")
    assert len(read_samples(tmp_path, split="train")) == 3


@pytest.mark.parametrize("other", ["more", "train-and-test"])
def test_a_folder_where_only_some_names_tell_a_split_is_refused(tmp_path, other):
    for name in ("train", "test", other):
        saved_dataset().to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=rf"{other}\.parquet, whose name tells no split"):
        read_samples(tmp_path, split="train")


def test_training_and_validation_data_together(tmp_path):
    """`trainval` of ScienceQA, which its tables have only as two splits."""
    whole = saved_dataset()
    whole.select([0, 1, 2]).to_parquet(tmp_path / "train.parquet")
    whole.select([3, 4]).to_parquet(tmp_path / "val.parquet")
    require_columns_read(read_samples(tmp_path, split="trainval"))
    parts = {"train": whole.select([0, 1, 2]), "validation": whole.select([3, 4]), "test": whole}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    require_columns_read(read_samples(tmp_path / "saved", split="trainval"))
    (tmp_path / "val.parquet").unlink()
    with pytest.raises(ValueError, match="no split 'trainval': it holds train"):
        read_samples(tmp_path, split="trainval")


def test_small_row_groups_are_read_where_they_lie(tmp_path):
    rows = [{"image": {"bytes": png(row), "path": None}, "question": f"q{row}", "answer": "a"} for row in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet", row_group_size=2)
    samples = read_samples(tmp_path / "d.parquet")
    for row in (8, 0, 5, 3):
        assert samples[row].turns[0].text == f"<image>\nq{row}"
        assert image_bytes(samples[row].images[0]) == png(row)


def test_scienceqa_and_cauldron_columns(tmp_path):
    image = {"bytes": png(1), "path": None}
    pq.write_table(pa.Table.from_pylist([PROBLEM | {"image": image}]), tmp_path / "s.parquet")
    (sample,) = read_samples(tmp_path / "s.parquet")
    assert (sample.turns[0].text, sample.answers, sample.task) == (f"<image>\n{PROMPT}", ("B",), "natural science")
    hub = PROBLEM | {"image": image, "task": "closed choice", "skill": "Look"}  # the Hub's tables have a `task` too
    pq.write_table(pa.Table.from_pylist([hub]), tmp_path / "h.parquet")
    assert read_samples(tmp_path / "h.parquet")[0].task == "natural science"
    texts = [{"user": "What is it?", "assistant": "A dog.", "source": "x"}, {"user": "Sure?", "assistant": "Yes."}]
    pq.write_table(pa.Table.from_pylist([{"images": [image], "texts": texts}]), tmp_path / "c.parquet")
    (sample,) = read_samples(tmp_path / "c.parquet")
    assert sample.turns == (*TURNS, Turn("user", "Sure?"), Turn("assistant", "Yes."))
