"""No command breaks where the directory it is started in has files that are called like this project's packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.catalogue import RUN_ENVIRONMENT
from tasks.final import train
from tasks.service.stack import local
from tasks.service.stack.processes import start
from tasks.service.stack.services import Stack
from tasks.settings.accelerate import Acceleration
from tests.conftest import ROOT, wait_until

NAMES = ("tasks", "flows", "mars_core", "deployments")
MARS = Path(sys.executable).with_name("mars")
IMPORT = [sys.executable, "-c", "import deployments, flows.cli.main, mars_core, tasks; print('imported')"]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A directory with Invoke's tasks.py and others of its kind, in which everything is started."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text("raise RuntimeError('imported from where it was started')\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return folder


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_precautions_the_files_are_in_the_way(elsewhere):
    done = subprocess.run(IMPORT, capture_output=True, text=True, check=False)
    assert "imported from where it was started" in done.stderr


def test_the_command_itself(elsewhere):
    assert "performance" in run([str(MARS), "laws", "list"], dict(os.environ))


def test_what_the_command_starts_by_way_of_prefect(elsewhere):
    """Prefect's temporary server is a Python that gets the environment of the command."""
    code = "from flows.cli.environment import prepare_environment; prepare_environment(debug=False); "
    code += f"import subprocess; subprocess.run({IMPORT}, check=True)"
    assert run([sys.executable, "-P", "-c", code], dict(os.environ)) == "imported\n"


def test_flow_runs_of_a_worker(elsewhere):
    """A worker starts a Python where it was started itself, with the deployment's environment."""
    assert run(IMPORT, {**os.environ, **RUN_ENVIRONMENT}) == "imported\n"


def test_the_processes_of_accelerate(elsewhere, tmp_path, monkeypatch):
    """The launcher finds accelerate, and each of the processes that it starts a module of this project."""
    monkeypatch.setattr(train, "MODULE", "tasks.running.child")  # a light one
    file, folder = tmp_path / "accelerate.yaml", tmp_path / "launch"
    file.write_text("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n")
    folder.mkdir()
    launch = train.start_launch(Acceleration(file, "MULTI_CPU", 2), folder)
    assert launch.wait(120) == 0, (folder / train.LOG).read_text()


def test_services_of_the_local_stack(elsewhere):
    log = elsewhere / "service.log"  # they are started in the folder of their log
    start("service", IMPORT, dict(os.environ), log)
    wait_until(log.read_text, seconds=120)
    assert log.read_text() == "imported\n"


def test_the_registration_of_deployments(elsewhere, tmp_path, monkeypatch):
    really = subprocess.run
    monkeypatch.setattr(local.subprocess, "run", lambda command, **options: really(IMPORT, **options))
    (tmp_path / "stack" / "logs").mkdir(parents=True)
    local._register(Stack(tmp_path / "stack", 1, 2), dict(os.environ))
    assert (tmp_path / "stack" / "logs" / "register.log").read_text() == "imported\n"
