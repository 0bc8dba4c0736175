"""Two processes and one study folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tasks.study.lock import StudyBusyError, at_work_on
from tests.conftest import ROOT

HOLD = """
import sys
from pathlib import Path
from tasks.study.lock import at_work_on

with at_work_on(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder until its input ends."""
    file = tmp_path / "hold.py"
    file.write_text(HOLD)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(file), str(tmp_path / "study")]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def take(study: Path) -> bool:
    with at_work_on(study):
        return True


def test_a_second_process_is_refused_and_told_who_holds_the_study(holder, tmp_path):
    with pytest.raises(StudyBusyError, match=rf"hold\.py .*process {holder.pid} on .*wait until it has ended"):
        take(tmp_path / "study")
    assert take(tmp_path / "another study")
    holder.communicate("")
    assert take(tmp_path / "study")


def test_a_process_that_was_killed_holds_nothing(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert take(tmp_path / "study")


def test_a_process_may_take_its_own_study_again_inside(tmp_path):
    with at_work_on(tmp_path / "study"):
        assert take(tmp_path / "study")
        assert (tmp_path / "study" / ".lock").exists()  # still held


def test_a_failure_inside_lets_go(tmp_path):
    with pytest.raises(RuntimeError, match="broken"), at_work_on(tmp_path):
        raise RuntimeError("broken")
    assert take(tmp_path)


def test_commands_that_train_are_refused_at_once(holder, tmp_path, demo_data):
    from flows.cli.main import app
    from tests.flows.conftest import write_small_study

    write_small_study(tmp_path, demo_data)
    done = CliRunner().invoke(app, ["calibrate", str(tmp_path / "study.yaml")])
    assert done.exit_code == 2
    assert f"process {holder.pid}" in done.stderr
    assert not (tmp_path / "study" / "revisions").exists()
