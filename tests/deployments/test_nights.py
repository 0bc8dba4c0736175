"""A night does not meet another command of its study, however short its schedule is; those of others go on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.study.lock import at_work_on

pytestmark = pytest.mark.stack

NIGHTLY = "mars-nightly/nightly-recalibration"


def test_a_night_that_meets_another_command_of_its_study_is_skipped(stack, copied, tmp_path):
    with at_work_on(Path(copied.study)), at_work_on(tmp_path / "other"):
        state = stack.finish(stack.start(NIGHTLY, study=copied.study))
    assert (state["type"], state["name"]) == ("COMPLETED", "Skipped")
    assert f"process {os.getpid()}" in state["message"]
    assert not (Path(copied.study) / "night.json").exists()  # it has looked at nothing
    with at_work_on(tmp_path / "other"):
        state = stack.finish(stack.start(NIGHTLY, study=copied.study))
    assert (state["type"], state["name"]) == ("COMPLETED", "Completed")
    assert (Path(copied.study) / "night.json").is_file()
