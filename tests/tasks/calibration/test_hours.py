"""Hours of final runs, against arithmetic by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.calibration.hours import final_hours, revision_hours
from tasks.storage.files import write_json
from tasks.storage.folder import Revision

GPU = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("record", "hours"),
    [
        ({"device": GPU, "devices": 1, "processes": 1}, {"gpu_hours": 0.5}),
        ({"device": GPU, "devices": 4, "processes": 4}, {"gpu_hours": 2.0}),
        ({"device": GPU, "devices": 2, "processes": 1}, {"gpu_hours": 1.0}),  # one model spread over two
        ({"device": GPU, "processes": 8}, {"gpu_hours": 4.0}),  # a record of an earlier version
        ({"device": "cpu"}, {"cpu_hours": 0.5}),
        ({}, {}),
    ],
)
def test_half_an_hour_counts_for_everything_that_was_held(record, hours):
    assert final_hours({"seconds": 1800.0, **record}) == hours


def test_a_revision_adds_up_its_final_runs(tmp_path: Path):
    revision = Revision(tmp_path, 1)
    for name, devices in (("me2-llm4", 4), ("full-rank", 2)):
        record = {"seconds": 3600.0, "device": GPU, "devices": devices, "processes": devices}
        write_json(revision.path("final", name, "training.json"), record)
    assert revision_hours(revision) == {"gpu_hours": 6.0, "cpu_hours": 0.0}
