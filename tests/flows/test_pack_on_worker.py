"""A pack as a worker is asked to train it: whole, half stored already, or not the one that this machine would plan."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from flows.on_workers import calibrate_pack_flow
from tasks.calibration import train as packs
from tasks.inputs.opened import Inputs
from tasks.settings.study import StudyConfig
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.parent_run import parent_run
from tasks.study.plan import plan_calibration


@pytest.fixture
def asked(copied: StudyConfig) -> dict[str, object]:
    """What a calibration asks for: one pack of all four runs, none of them stored."""
    revision = Revision(Path(copied.study), 1)
    for file in revision.path("calibration").glob("*.*"):
        file.unlink()
    with parent_run(Study(copied, revision)) as parent:
        runs = [run.run_id for run in plan_calibration(Inputs(copied)).runs]
        return {"config": copied, "revision": 1, "runs": runs, "parent": parent}


@pytest.mark.slow
def test_a_pack_killed_while_it_stored_its_runs_goes_on_with_its_state(asked, finished, monkeypatch, capsys):
    store, stored = packs._store, []

    def killed_at_the_second(revision, run, *rest):
        if stored:
            raise KeyboardInterrupt
        stored.append(store(revision, run, *rest))

    monkeypatch.setattr(packs, "_store", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        calibrate_pack_flow(**asked)
    monkeypatch.setattr(packs, "_store", store)
    capsys.readouterr()
    files = calibrate_pack_flow(**asked)
    assert "going on after step 8 of 8" in capsys.readouterr().err
    assert len(files) == 4
    for file in map(Path, files):
        mine = pd.read_parquet(file)
        expected = pd.read_parquet(Revision(Path(finished.study), 1).path("calibration", file.name))
        assert mine.step.tolist() == expected.step.tolist() == [1, 2, 3, 4, 6, 8]
        # One adapter batch after another here, two at a time there: single precision, other orders of sums, eight
        # steps.
        pd.testing.assert_series_equal(mine.val_loss, expected.val_loss, rtol=1e-3)
    assert calibrate_pack_flow(**asked) == []


def test_runs_that_this_machine_would_not_plan_are_refused(asked):
    with pytest.raises(ValueError, match="1 of 4 calibration runs are not in this worker's plan: data, model or code"):
        calibrate_pack_flow(**asked | {"runs": [*asked["runs"][:3], "other"]})


def test_another_version_of_the_code_is_refused(asked):
    with pytest.raises(ValueError, match=r"asked for the pack 0\.0\.1: install the same version"):
        calibrate_pack_flow(**asked, code_version="0.0.1")
