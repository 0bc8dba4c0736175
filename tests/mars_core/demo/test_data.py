import json
import re

import pytest
from PIL import Image

from mars_core.demo.data import SPLITS, build_demo_data, split_drawings
from mars_core.demo.drawings import DRAWING_COLOURS, load_drawings
from mars_core.demo.questions import LETTER_PROMPT

SIZES = {"n_train": 60, "n_validation": 20, "n_test": 20}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build_demo_data(tmp_path_factory.mktemp("demo") / "data", **SIZES)


@pytest.fixture(scope="module")
def drawings():
    return load_drawings(with_kind_only=True)


def records(data, split):
    return json.loads((data.folder / f"{split}.json").read_text(encoding="utf-8"))


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_records_are_llava_json_with_one_marker_per_picture(data):
    for split in SPLITS:
        rows = records(data, split)
        assert len(rows) == SIZES[f"n_{split}"]
        for row in rows:
            values = [turn["value"] for turn in row["conversations"]]
            roles = [turn["from"] for turn in row["conversations"]]
            assert "".join(values).count("<image>") == 1
            assert values[0].startswith("<image>\n")
            assert roles == ["human", "gpt"] * (len(roles) // 2)
            assert Image.open(data.images / row["image"]).size == (64, 64)


def test_all_task_types_occur(data):
    assert {row["task"] for row in records(data, "train")} == {"caption", "attribute", "conversation", "choice"}


def test_multiple_choice_is_answered_by_the_letter_of_the_right_option(data):
    rows = [row for split in SPLITS for row in records(data, split) if row["task"] == "choice"]
    assert rows
    for row in rows:
        prompt, answer = (turn["value"] for turn in row["conversations"])
        assert prompt.endswith(LETTER_PROMPT)
        letters = re.findall(r"^([A-D])\. ", prompt, flags=re.MULTILINE)
        assert letters == list("ABCD"[: len(letters)])
        assert answer in letters


def test_no_picture_stands_twice(data):
    pictures = [path.read_bytes() for path in data.images.iterdir()]
    assert len(set(pictures)) == len(pictures) == sum(SIZES.values())


def test_same_arguments_give_the_same_bytes(data, tmp_path):
    assert files(build_demo_data(tmp_path / "again", **SIZES).folder) == files(data.folder)


def test_another_seed_gives_other_data(data, tmp_path):
    other = build_demo_data(tmp_path / "other", **SIZES, seed=1)
    assert other.train.read_bytes() != data.train.read_bytes()


def test_data_that_are_there_are_not_built_again(data):
    calls = []
    build_demo_data(data.folder, **SIZES, progress=lambda done, total: calls.append((done, total)))
    assert calls == []


def test_other_sizes_replace_the_data_and_report_progress(tmp_path):
    build_demo_data(tmp_path / "data", n_train=2, n_validation=1, n_test=1)
    calls = []
    again = build_demo_data(
        tmp_path / "data", n_train=3, n_validation=1, n_test=1, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(i, 5) for i in range(1, 6)]
    assert len(records(again, "train")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        build_demo_data(tmp_path, **SIZES)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="n_test must be at least 1, got 0"):
        build_demo_data(tmp_path / "data", n_train=1, n_validation=1, n_test=0)


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_demo_data(tmp_path / "data", **SIZES, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_attribution_names_openmoji_and_its_licence(data):
    text = (data.folder / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "OpenMoji" in text
    assert "CC BY-SA 4.0" in text


def test_a_drawing_stands_in_one_split_and_every_colour_in_all(drawings):
    parts = split_drawings(drawings, seed=0)
    codes = [drawing.code for split in SPLITS for drawing in parts[split]]
    assert len(codes) == len(set(codes)) > 300
    for split in SPLITS:
        assert {drawing.colour for drawing in parts[split]} == set(DRAWING_COLOURS)


@pytest.mark.parametrize(
    ("name", "kind", "colour"),
    [("red_apple", "food", "red"), ("frog", "animal", "green"), ("grinning_face", "face", "yellow")],
)
def test_kind_and_colour_of_well_known_drawings(drawings, name, kind, colour):
    drawing = next(drawing for drawing in drawings if drawing.name == name)
    assert (drawing.kind, drawing.colour) == (kind, colour)
