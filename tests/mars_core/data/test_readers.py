from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mars_core.data.images import image_bytes, load_image
from mars_core.data.readers import detect_format, read_rows, read_samples
from mars_core.data.records import BadRow, PathImage, Turn

TALK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": " A dog.\n"}]
TURNS = (Turn("user", "<image>\nWhat is it?"), Turn("assistant", "A dog."))


def png(shade: int = 9) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def write_json(tmp_path):
    def write(content, name: str = "data.json") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_parquet(tmp_path):
    def write(rows: list[dict], name: str = "data.parquet") -> Path:
        path = tmp_path / name
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path

    return write


def test_llava_json(write_json, tmp_path):
    path = write_json([{"id": "a", "image": "x.png", "conversations": TALK, "task": "naming"}])
    (sample,) = read_samples(path)
    assert (sample.id, sample.turns, sample.task) == ("a", TURNS, "naming")
    assert sample.images == (PathImage("x.png", tmp_path),)
    assert str(sample.source) == f"{path}, row 1 (line 1)"


def test_images_are_relative_to_the_image_folder_when_one_is_given(write_json, tmp_path):
    (tmp_path / "pictures").mkdir()
    path = write_json([{"image": ["x.png", "y.png"], "conversations": TALK}])
    (sample,) = read_samples(path, tmp_path / "pictures")
    assert sample.images == tuple(PathImage(name, tmp_path / "pictures") for name in ("x.png", "y.png"))


def test_rows_without_id_or_task_are_named_by_row_and_form(write_json):
    text_only = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Yes."}]
    path = write_json(
        [
            {"image": "x.png", "conversations": TALK},
            {"conversations": text_only},
            {"image": "x.png", "conversations": TALK + text_only},
        ]
    )
    samples = read_samples(path)
    assert [sample.id for sample in samples] == ["data-1", "data-2", "data-3"]
    assert [sample.task for sample in samples] == ["single-turn", "text-only", "multi-turn"]


def test_task_type_is_another_name_of_task(write_json):
    (sample,) = read_samples(write_json([{"task_type": "ocr", "conversations": TALK}]))
    assert sample.task == "ocr"


def test_a_byte_order_mark_does_no_harm(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"conversations": TALK}]), encoding="utf-8-sig")
    assert len(read_samples(path)) == 1


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("text", "expected a record with `conversations` or `messages`, got str"),
        ({"id": "a", "text": "b"}, "no `conversations`, only 'id', 'text'"),
        ({"conversations": []}, r"expected a list of messages, got \[\]"),
        ({"conversations": ["hello"]}, "expected a message with a speaker and a text, got 'hello'"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, "unknown speaker 'robot': expected human or gpt"),
        ({"conversations": [{"from": "gpt", "value": 3}]}, "a message must be text, got 3"),
        ({"conversations": TALK, "image": 3}, "`image` must be a path or a list of paths, got 3"),
    ],
)
def test_bad_records_are_named_with_their_row(write_json, record, reason):
    path = write_json([{"conversations": TALK}, record])
    with pytest.raises(ValueError, match=rf"1 row is bad:\n  {path}, row 2 \(line 1\): {reason}"):
        read_samples(path)


def test_all_bad_records_are_counted_and_the_rest_is_read(write_json):
    path = write_json([{"conversations": TALK}, *[{}] * 7])
    with pytest.raises(ValueError, match=r"(?s)7 rows are bad:.*row 6 .*\.\.\. and 2 more\ncorrect or remove"):
        read_samples(path)
    assert [isinstance(row, BadRow) for row in read_rows(path)] == [False, *[True] * 7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{]", r"data\.json, row 1 .*not valid JSON .*line 1 column 3"),
        ("[]", r"data\.json is empty: expected at least one row"),
        ('{"a": 1}', r"cannot tell the format of .*data\.json: expected a JSON list"),
        ("", r"cannot tell the format of .*data\.json"),
    ],
)
def test_files_that_are_no_dataset_say_so(write_json, text, message):
    with pytest.raises(ValueError, match=message):
        read_samples(write_json(text))


def test_a_forced_format_meets_another_file(write_json):
    path = write_json('{"a": 1}')
    with pytest.raises(ValueError, match="no `conversations`, only 'a'"):
        read_samples(path, format="llava_json")
    (path.parent / "table.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="is not valid JSON: expected a list of records, or one record a line"):
        read_samples(path.parent / "table.parquet", format="messages")
    with pytest.raises(ValueError, match="not a readable Parquet or Arrow file"):
        read_samples(path, format="parquet")
    with pytest.raises(ValueError, match="unknown data format 'csv': expected one of parquet, datasets, scienceqa"):
        read_samples(path, format="csv")


def test_missing_paths_are_said_before_reading(tmp_path, write_json):
    with pytest.raises(ValueError, match=r"no dataset file or folder at .*nothing\.json"):
        read_samples(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match=r"no image folder at .*nowhere"):
        read_samples(write_json([{"conversations": TALK}]), tmp_path / "nowhere")


def test_the_format_comes_from_the_content_not_the_name(write_parquet, write_json):
    assert detect_format(write_parquet([{"question": "a", "answer": "b"}], "odd.json")) == "parquet"
    assert detect_format(write_json([{"conversations": TALK}], "odd.parquet")) == "llava_json"


def test_parquet_question_and_answer_with_image_bytes(write_parquet):
    path = write_parquet(
        [
            {"id": 7, "image": {"bytes": png(), "path": "a.png"}, "question": "What is it?", "answer": "A dog. "},
            {"id": 8, "image": None, "question": "Hello?", "answer": "Yes."},
        ]
    )
    one, two = read_samples(path)
    assert (one.id, one.turns, one.task) == ("7", TURNS, "single-turn")
    assert str(one.images[0]) == "a.png"
    assert image_bytes(one.images[0]) == png()
    assert load_image(one.images[0]).getpixel((0, 0)) == (9, 0, 0)
    assert two.images == ()
    assert two.turns[0] == Turn("user", "Hello?")


def test_parquet_question_keeps_its_own_markers(write_parquet):
    images = [{"bytes": png(shade), "path": None} for shade in (1, 2)]
    path = write_parquet([{"images": images, "question": "Is <image> like <image>?", "answer": "No."}])
    (sample,) = read_samples(path)
    assert sample.turns[0].text == "Is <image> like <image>?"
    assert [str(image) for image in sample.images] == ["data-1-1", "data-1-2"]
    assert [image_bytes(image) for image in sample.images] == [png(1), png(2)]


def test_parquet_paths_are_relative_to_the_image_folder(write_parquet, tmp_path):
    rows = [
        {"image": {"bytes": None, "path": "x.png"}, "conversations": TALK, "task": "naming"},
        {"image": {"bytes": b"", "path": "y.png"}, "conversations": TALK, "task": "naming"},
    ]
    samples = read_samples(write_parquet(rows))
    assert [sample.images for sample in samples] == [
        (PathImage("x.png", tmp_path),),
        (PathImage("y.png", tmp_path),),
    ]
    assert {(sample.turns, sample.task) for sample in samples} == {(TURNS, "naming")}


def test_parquet_messages_with_text_or_blocks(write_parquet):
    text = [{"role": "user", "content": "<image>\nWhat is it?"}, {"role": "assistant", "content": "A dog."}]
    blocks = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "\nWhat is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
    ]
    image = {"bytes": png(), "path": None}
    for name, messages in (("text", text), ("blocks", blocks)):
        (sample,) = read_samples(write_parquet([{"image": image, "messages": messages}], f"{name}.parquet"))
        assert sample.turns == TURNS


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": None, "answer": "a"}, "`question` and `answer` must be text, got None and 'a'"),
        (
            {"image": {"bytes": None, "path": None}, "question": "q", "answer": "a"},
            "an image must be a path, bytes, or a struct",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "video", "text": "a"}]}]},
            "unknown content block .*expected type text or image",
        ),
    ],
)
def test_bad_parquet_rows_are_named(write_parquet, row, reason):
    path = write_parquet([row])
    with pytest.raises(ValueError, match=rf"{path}, row 1: {reason}"):
        read_samples(path)


def test_parquet_without_known_columns_says_what_it_has(write_parquet):
    with pytest.raises(ValueError, match=r"columns prompt, reply: expected `messages`, `conversations`, or"):
        read_samples(write_parquet([{"prompt": "a", "reply": "b"}]))
