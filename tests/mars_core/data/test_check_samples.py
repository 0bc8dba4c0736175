from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from mars_core.data.check import Spread, check_samples
from mars_core.data.hashing import data_hash
from mars_core.data.images import content_hashes
from mars_core.data.readers import read_rows, read_samples
from mars_core.data.records import BadRow, BytesImage, PathImage, Source, Turn
from mars_core.data.shared import shared_images


def reasons(report) -> list[str]:
    return [problem.reason for problem in report.problems]


def test_a_good_dataset_passes_and_is_described(make_image, sample_of):
    shared = make_image(size=(40, 30))
    samples = [
        sample_of("<image>\nWhat?", "A dog.", images=(shared,), task="naming", name="a"),
        sample_of("<image>\nWhere?", "Left.", images=(shared,), task="place", name="b"),
        sample_of("<image><image>Same?", "No.", images=(shared, make_image(size=(10, 90))), name="c", task="naming"),
        sample_of("<image>?", "No.", images=(make_image(size=(20, 20)),), name="d", task="naming"),
        sample_of("Hello?", "Yes.", task="text", name="e"),
    ]
    report = check_samples(samples)
    report.raise_if_bad()
    assert report.rows == 5
    assert report.tasks == {"naming": 3, "place": 1, "text": 1}
    assert report.images_per_sample == {0: 1, 1: 3, 2: 1}
    assert report.images is not None
    assert report.images.count == 3
    assert (report.images.width.smallest, report.images.width.median, report.images.width.largest) == (10, 20, 40)
    assert (report.images.height.smallest, report.images.height.median, report.images.height.largest) == (20, 30, 90)
    assert report.exchanges == Spread(1, 1, 1, 1, 1)
    assert report.notes == ()
    assert report.hashes == content_hashes(samples)


def test_every_bad_row_is_found_in_one_pass(tmp_path):
    """The file holds one row of every kind of mistake between good ones."""
    Image.new("RGB", (50, 50)).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:50])
    ask, answer = {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}
    cases = [
        ({"image": "good.png", "conversations": [ask, answer]}, None),
        ({"image": "lost.png", "conversations": [ask, answer]}, "missing image 'lost.png'"),
        ({"image": "cut.png", "conversations": [ask, answer]}, "unreadable image 'cut.png'"),
        ({"image": "../good.png", "conversations": [ask, answer]}, "leads outside the image folder"),
        ({"image": "/good.png", "conversations": [ask, answer]}, "is absolute"),
        ({"conversations": [ask, answer]}, "1 <image> marker for 0 images: put one marker per image"),
        ({"image": ["good.png"] * 2, "conversations": [ask, answer]}, "1 <image> marker for 2 images"),
        ({"image": "good.png", "conversations": [ask, {"from": "gpt", "value": " "}]}, "empty answer"),
        ({"image": "good.png", "conversations": [ask]}, "roles out of order (user)"),
        ({"image": "good.png", "conversations": [answer, ask]}, "roles out of order (assistant, user)"),
        ({"image": "good.png", "conversations": [ask, ask, answer]}, "roles out of order (user, user, assistant)"),
        ({"image": "good.png"}, "no `conversations`"),
        ({"image": "good.png", "conversations": [ask, answer]}, None),
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps([record for record, _ in cases]))
    report = check_samples(list(read_rows(path)))
    found = {problem.source.row: problem for problem in reversed(report.problems)}
    expected = {row: reason for row, (_, reason) in enumerate(cases, start=1) if reason}
    assert found.keys() == expected.keys()
    for row, reason in expected.items():
        assert reason in found[row].reason
        assert str(found[row]).startswith(f"{path}, row {row} (line 1): ")
    with pytest.raises(
        ValueError, match=r"(?s)11 rows are bad:.*row 2 \(line 1\): missing .*\.\.\. and 7 more\ncorrect or"
    ):
        report.raise_if_bad()


def test_a_row_can_be_bad_in_several_ways(tmp_path, sample_of):
    sample = sample_of("<image>\nWhat?", "", images=(PathImage("a.png", tmp_path), PathImage("b.png", tmp_path)))
    report = check_samples([sample])
    assert [reason.split(":")[0].split(" in ")[0] for reason in reasons(report)] == [
        "empty answer",
        "1 <image> marker for 2 images",
        "missing image 'a.png'",
        "missing image 'b.png'",
    ]


def test_an_image_marker_in_an_answer_is_found(make_image, sample_of):
    report = check_samples([sample_of("Show me.", "<image>", images=(make_image(),))])
    assert reasons(report) == ["<image> in an answer: images can only stand in a user's turn"]


def test_an_empty_dataset_is_bad():
    with pytest.raises(ValueError, match="the dataset is empty: expected at least one row"):
        check_samples([]).raise_if_bad()


def test_without_decoding_headers_are_still_read(tmp_path, make_image, sample_of):
    cut = make_image("cut.png", size=(300, 200))
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    samples = [
        sample_of("<image>?", "Yes.", images=(cut,)),
        sample_of("<image>?", "No.", images=(PathImage("lost.png", tmp_path),)),
    ]
    quick, full = check_samples(samples, decode=False), check_samples(samples)
    assert len(quick.problems) == 1
    assert quick.images is not None
    assert quick.images.width == Spread(300, 300, 300, 300, 300)
    assert quick.hashes == {}
    assert len(full.problems) == 2


def test_repeated_ids_are_noted_not_refused(sample_of):
    samples = [sample_of("q", "a", name=name, row=row) for row, name in enumerate("xyxyz", start=1)]
    report = check_samples(samples)
    report.raise_if_bad()
    assert report.notes == ("2 ids stand on more than one row, such as 'x' (d.json, row 1 and d.json, row 3)",)


def test_progress_is_told(sample_of):
    seen = []
    rows = [sample_of("q", "a"), BadRow(Source(Path("d.json"), 2), "bad")]
    check_samples(rows, progress=seen.append)
    assert seen == [1, 2]


def test_an_image_in_two_splits_is_found_under_another_name(make_image, sample_of, tmp_path):
    one, twin, other = make_image(shade=5), make_image("twin.png", shade=5), make_image(shade=6)
    inside = BytesImage((tmp_path / "twin.png").read_bytes(), "inside")
    splits = {
        "train": [sample_of("q", "a", images=(one, other)), sample_of("q", "a", images=(one,), row=2)],
        "validation": [sample_of("q", "a", images=(twin,), row=7, file="v.json")],
        "test": [sample_of("q", "a", images=(inside,), row=8, file="t.json")],
    }
    (shared,) = shared_images(splits)
    assert list(shared.shown_by) == ["train", "validation", "test"]
    assert str(shared) == (
        "the same image in train (d.json, row 1, 1.png) and validation (v.json, row 7, twin.png) "
        "and test (t.json, row 8, inside)"
    )


def test_known_hashes_of_a_report_leave_unreadable_images_out(make_image, sample_of, tmp_path):
    good, lost = make_image(), PathImage("lost.png", tmp_path)
    splits = {
        "train": [sample_of("q", "a", images=(good, lost))],
        "test": [sample_of("q", "a", images=(lost, good))],
    }
    hashes = check_samples([*splits["train"], *splits["test"]]).hashes
    assert len(shared_images(splits, hashes)) == 1


def write_dataset(folder: Path, *, shade: int = 1, answer: str = "A dog.", name: str = "x.png", task: str = "t") -> str:
    folder.mkdir()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(folder / name)
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}]
    (folder / "d.json").write_text(json.dumps([{"image": name, "conversations": talk, "task": task}]))
    return data_hash(read_samples(folder / "d.json"))


def test_the_data_hash_follows_content_not_names(tmp_path):
    reference = write_dataset(tmp_path / "a")
    assert write_dataset(tmp_path / "moved", name="renamed.png") == reference
    others = [
        write_dataset(tmp_path / "b", shade=2),
        write_dataset(tmp_path / "c", answer="A cat."),
        write_dataset(tmp_path / "d", task="u"),
    ]
    assert len({reference, *others}) == 4


def test_the_data_hash_is_fixed(sample_of):
    """A changed hash would disown every stored study: it must not change by accident."""
    samples = [sample_of("<image>\nWhät?", "A dog.", images=(BytesImage(b"not decoded", "x"),))]
    assert data_hash(samples) == "4c5de32b2088a84cb3ecc04ac648a6a74d89e411b4a3456554b66b1839861e02"


def test_the_data_hash_tells_turns_and_order_apart(sample_of):
    one, two = sample_of("q", "a"), sample_of("r", "b")
    swapped = dataclasses.replace(one, turns=(Turn("user", "qa"), Turn("assistant", "")))
    hashes = {data_hash([one, two]), data_hash([two, one]), data_hash([one]), data_hash([swapped, two])}
    assert len(hashes) == 4
