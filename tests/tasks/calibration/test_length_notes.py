"""What a calibration says of samples that are longer than the recipe takes: a note, and a warning above a tenth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tasks.inputs.opened import Inputs
from tasks.study.plan import plan_calibration
from tests.flows.conftest import write_small_study

LONG = " ".join(["very"] * 600)  # more tokens than the study's 512, since no token spans two words


@pytest.mark.parametrize(
    ("too_long", "warned"),
    [(0, None), (6, False), (7, True)],  # of 64: none, 9.4% and 10.9%
)
def test_above_a_tenth_of_too_long_samples_a_note_becomes_a_warning(tmp_path: Path, demo_data: Path, too_long, warned):
    shutil.copytree(demo_data, tmp_path / "data")
    file = tmp_path / "data" / "train.json"
    rows = json.loads(file.read_text())
    for row in rows[:too_long]:
        row["conversations"][-1]["value"] = LONG
    file.write_text(json.dumps(rows))
    plan = plan_calibration(Inputs(write_small_study(tmp_path, tmp_path / "data")))
    about = [note for note in plan.notes if "longer than" in note]
    if warned is None:
        assert about == []
        return
    (note,) = about
    assert f"{too_long} of 64 train samples are longer than 512 tokens and left out" in note
    assert note.startswith("WARNING: ") == warned
    assert ("11% of them" in note and "raise recipe.max_tokens" in note) == warned
