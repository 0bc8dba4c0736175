"""`mars schedule` against a real server: a schedule per study, on the deployment that is registered, and it fires."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tasks.settings.study import StudyConfig, write_study
from tests.deployments.conftest import Running, mars, wait_until

pytestmark = pytest.mark.stack

NIGHTLY = "mars-nightly/nightly-recalibration"


def schedule(stack: Running, *arguments: str) -> Any:
    done = mars("schedule", *arguments, "--json", environment=stack.environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def nights(stack: Running, study: StudyConfig, kind: str) -> list[dict[str, Any]]:
    return [run for run in stack.runs_of(NIGHTLY, study.study) if run["state"]["type"] == kind]


@pytest.fixture
def other(copied: StudyConfig, tmp_path: Path) -> StudyConfig:
    """A second study: it is scheduled but its time does not come."""
    config = copied.model_copy(update={"study": str(tmp_path / "other")})
    write_study(config, tmp_path / "other.yaml")
    return config


def test_schedule_fires_outlives_a_registration_and_ends(
    stack: Running, copied: StudyConfig, other: StudyConfig, tmp_path: Path
):
    others_file = str(tmp_path / "other.yaml")
    assert schedule(stack, "set", others_file, "--cron", "0 2 * * *")["schedule"] == "created"
    said = schedule(stack, "set", copied.study, "--cron", "0 3 * * *", "--timezone", "Europe/Berlin")
    assert said == {"schedule": "created", "study": copied.study, "when": "0 3 * * * (Europe/Berlin)"}
    wait_until(lambda: all(one["upcoming"] for one in schedule(stack, "list")), seconds=120)
    night = next(one for one in schedule(stack, "list") if one["study"] == copied.study)
    assert (night["when"], night["timezone"], night["trigger"]) == ("0 3 * * *", "Europe/Berlin", "propose")
    # 03:00 in Berlin is 01:00 or 02:00 UTC.
    assert datetime.fromisoformat(night["upcoming"]).utctimetuple().tm_hour in (1, 2)

    registered = subprocess.run(
        [sys.executable, "-m", "deployments.register"], env=stack.environment, capture_output=True, text=True
    )
    assert registered.returncode == 0, registered.stderr
    assert {one["study"] for one in schedule(stack, "list")} == {copied.study, others_file}

    # Every minute, as nobody would: the test has no night to wait for.
    changed = schedule(stack, "set", copied.study, "--cron", "* * * * *", "--trigger", "run")
    assert changed["schedule"] == "changed"
    assert len(schedule(stack, "list")) == 2
    wait_until(lambda: nights(stack, copied, "COMPLETED"))
    assert nights(stack, other, "COMPLETED") == []
    assert schedule(stack, "remove", copied.study)["schedule"] == "removed"
    wait_until(lambda: not nights(stack, copied, "SCHEDULED"), seconds=60)
    assert [one["study"] for one in schedule(stack, "list")] == [others_file]
    night_runs = nights(stack, copied, "COMPLETED")
    assert night_runs[0]["parameters"]["trigger"] == "run"
    assert night_runs[0]["work_pool_name"] == "mars-cpu"
    assert Path(copied.study, "night.json").is_file()
    assert stack.runs_of("mars-final/final-finetune", copied.study) == []  # nothing had changed

    again = mars("schedule", "remove", copied.study, environment=stack.environment)
    assert again.returncode == 2
    assert "mars schedule list" in again.stderr
    schedule(stack, "remove", others_file)


def test_no_schedule_for_a_cron_line_that_makes_no_sense(stack: Running, copied: StudyConfig):
    for wrong in (("--cron", "25 o'clock"), ("--timezone", "Middle-earth/Bree")):
        done = mars("schedule", "set", copied.study, *wrong, environment=stack.environment)
        assert done.returncode == 2
        assert wrong[1] in done.stderr
        assert "0 2 * * *" in done.stderr
    assert schedule(stack, "list") == []
