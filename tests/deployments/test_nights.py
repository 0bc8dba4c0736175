"""Nights of one study do not overlap, however short its schedule is; those of others go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.night_slot import night_slot

pytestmark = pytest.mark.stack

NIGHTLY = "mars-nightly/nightly-recalibration"


def test_a_night_that_meets_another_of_its_study_is_skipped(stack, copied, tmp_path):
    with temporary_settings({PREFECT_API_URL: stack.api}):
        with night_slot(Path(copied.study)) as free, night_slot(tmp_path / "other") as others_free:
            assert free
            assert others_free
            state = stack.finish(stack.start(NIGHTLY, study=copied.study))
        assert (state["type"], state["name"]) == ("COMPLETED", "Skipped")
        assert "under way" in state["message"]
        assert not (Path(copied.study) / "night.json").exists()  # it has looked at nothing
    state = stack.finish(stack.start(NIGHTLY, study=copied.study))
    assert (state["type"], state["name"]) == ("COMPLETED", "Completed")
    assert (Path(copied.study) / "night.json").is_file()


def test_a_slot_is_free_again_after_its_night_has_failed(stack, copied):
    def fail() -> None:
        with night_slot(Path(copied.study)) as free:
            assert free
            raise RuntimeError("broken")

    with temporary_settings({PREFECT_API_URL: stack.api}):
        with pytest.raises(RuntimeError, match="broken"):
            fail()
        with night_slot(Path(copied.study)) as free:
            assert free
