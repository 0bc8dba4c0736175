"""Near duplicates are looked for once for each set of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tasks.inputs.near_cache
from mars_core.data.image_fingerprints import ImageFingerprint
from mars_core.data.near import near_labels
from mars_core.data.records import BytesImage
from tasks.inputs.near_cache import find_near_labels


@pytest.fixture
def fingerprints(tmp_path, monkeypatch) -> dict[BytesImage, ImageFingerprint]:
    """30 pictures, each twice but for a little brightness."""
    monkeypatch.setenv("MARS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tasks.inputs.near_cache, "_WORTH_KEEPING", 10)
    cells = np.random.default_rng(0).integers(0, 240, (30, 432), dtype=np.uint8)
    return {
        BytesImage(b"", f"{number}+{more}"): ImageFingerprint(
            (1, 1), f"{more}-{number}", (cells[number] + np.uint8(more)).tobytes()
        )
        for number in range(30)
        for more in (0, 3)
    }


def kept(folder: Path) -> list[Path]:
    return list((folder / "cache").rglob("*.json"))


def test_labels_are_found_once_for_each_set_of_images(fingerprints, tmp_path, monkeypatch, capsys):
    expected = near_labels(fingerprints)
    assert len(set(expected.values())) == 30
    assert find_near_labels(fingerprints) == expected
    assert "near-duplicate images" in capsys.readouterr().err
    with monkeypatch.context() as once:
        once.setattr(tasks.inputs.near_cache, "near_labels", lambda fingerprints, **_: pytest.fail("looked for again"))
        assert find_near_labels(dict(reversed(fingerprints.items()))) == expected
    fewer = dict(list(fingerprints.items())[1:])
    assert find_near_labels(fewer) == near_labels(fewer)
    assert len(kept(tmp_path)) == 2


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "3"])
def test_a_damaged_file_is_made_again(fingerprints, tmp_path, content):
    expected = find_near_labels(fingerprints)
    (file,) = kept(tmp_path)
    file.write_text(content)
    assert find_near_labels(fingerprints) == find_near_labels(fingerprints) == expected


def test_a_cache_folder_that_cannot_be_written_to_is_done_without(fingerprints, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MARS_CACHE", str(tmp_path / "file"))
    assert find_near_labels(fingerprints) == near_labels(fingerprints)


def test_few_images_leave_no_file(fingerprints, tmp_path):
    few = dict(list(fingerprints.items())[:9])
    assert find_near_labels(few) == near_labels(few)
    assert kept(tmp_path) == []
