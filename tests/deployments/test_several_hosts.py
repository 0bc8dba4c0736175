"""Many hosts share a calibration: real workers, each with a host name of its own, and hosts that die as a whole.

A UTS namespace gives a worker and all its processes another host name, and with it another CPU's slot: to the product
it is another machine. MARS_TEST_HOSTS says how many there are (4; the machine of the tests counts as one).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import mlflow
import pandas as pd
import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.automations import AutomationSettings, register_automations
from mars_core.demo import build_demo_data
from mars_core.metrics.identity import content_hash
from tasks.service.device_slot import slot_name
from tasks.settings.study import StudyConfig, write_study
from tasks.storage.folder import Revision
from tasks.tracking.runs import experiment_name
from tests.deployments.conftest import Running, bring_up, mars, one_run_per_pack, wait_until
from tests.flows.conftest import write_small_study

HOSTS = int(os.environ.get("MARS_TEST_HOSTS", "4"))
PACK = "mars-calibrate-pack/calibrate-pack"
CALIBRATE = "mars-calibrate/calibrate"
NAMESPACE = ("unshare", "--uts", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)))
WHO_AND_WHEN = ["study_id", "pack_id", "wall_seconds", "peak_memory_bytes", "device"]


def may_name_hosts() -> bool:
    try:
        return subprocess.run([*NAMESPACE, "hostname", "mars-test"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(not may_name_hosts(), reason="`unshare --uts --mount` is not allowed here: hosts need names"),
]


@dataclass(frozen=True)
class Host:
    """A worker of pool mars-gpu on a host of its own."""

    name: str
    worker: subprocess.Popen[bytes]

    def die(self) -> None:
        """Everything on the host ends at once; nobody is left to say so."""
        worker = psutil.Process(self.worker.pid)
        for process in [worker, *worker.children(recursive=True)]:
            process.kill()  # the worker first: it must not see the others end
        self.worker.wait()


StartHosts = Callable[..., list[Host]]


@pytest.fixture
def hosts(stack: Running, tmp_path: Path) -> Iterator[StartHosts]:
    """Start workers, each on a host of its own; they end with the test."""
    started: list[Host] = []

    def start(*names: str, before: str = "true") -> list[Host]:
        """before: a shell command that each host runs first."""
        new = [Host(name, _worker(stack, name, f"hostname {name} && {before}", tmp_path)) for name in names]
        started.extend(new)
        wait_until(lambda: {host.name for host in new} <= online(stack))
        return new

    yield start
    for host in started:
        if host.worker.poll() is None:
            host.die()


def _worker(stack: Running, name: str, before: str, logs: Path) -> subprocess.Popen[bytes]:
    worker = f"{sys.executable} -m prefect worker start --type process --pool mars-gpu --limit 1 --name {name}"
    environment = stack.environment | {
        "PREFECT_HOME": str(stack.folder / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    with (logs / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [*NAMESPACE, "sh", "-c", f"{before} && exec {worker}"],
            env=environment,
            cwd=logs,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def online(stack: Running) -> set[str]:
    return {one["name"] for one in stack.post("/work_pools/mars-gpu/workers/filter") if one["status"] == "ONLINE"}


@pytest.fixture(scope="module")
def alone(stack: Running, tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    """A study with a pack for each host, calibrated in one process, pack by pack."""
    folder = tmp_path_factory.mktemp("alone")
    data = build_demo_data(folder / "data", n_train=512, n_validation=24, n_test=12).folder
    small = one_run_per_pack(write_small_study(folder, data))
    seeds = tuple(range(-(-HOSTS // 4)))  # of four pairs each
    longer = {"samples": 512, "smallest_size": 32, "parallel": 1, "seeds": seeds}
    config = small.model_copy(update={"calibration": small.calibration.model_copy(update=longer)})
    write_study(config, folder / "study.yaml")
    done = mars("calibrate", str(folder / "study.yaml"), environment=stack.environment)
    assert done.returncode == 0, done.stderr
    return config


@pytest.fixture
def fresh(alone: StudyConfig, tmp_path: Path) -> StudyConfig:
    """The same study in a folder of its own, not begun."""
    return alone.model_copy(update={"study": str(tmp_path / "study")})


@pytest.fixture
def soon_noticed(stack: Running) -> Iterator[None]:
    """The server does not wait long for a host that is silent."""
    with temporary_settings({PREFECT_API_URL: stack.api}), get_client(sync_client=True) as client:
        register_automations(client, AutomationSettings(silence_seconds=60, starting_minutes=2))
        yield
        register_automations(client)


def metrics(config: StudyConfig) -> pd.DataFrame:
    files = sorted(Revision(Path(config.study), 1).path("calibration").glob("*.parquet"))
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


def assert_as_alone(config: StudyConfig, alone: StudyConfig) -> None:
    """Every run is there once, with the numbers of one process to the last bit.

    A pack is trained alike wherever it is: the same sums in the same order by the same number of threads (one; with
    another number per host the sums would differ in their last digits, as between two kinds of GPU).
    """
    mine, expected = metrics(config), metrics(alone)
    assert not mine.duplicated(["run_id", "step"]).any()
    pd.testing.assert_frame_equal(
        mine.drop(columns=WHO_AND_WHEN), expected.drop(columns=WHO_AND_WHEN), check_exact=True
    )


def assert_tracked_once(stack: Running, config: StudyConfig) -> None:
    """One finished MLflow run for each calibration run, each step logged once; or killed before it logged anything."""
    client = mlflow.MlflowClient(stack.mlflow)
    experiment = client.get_experiment_by_name(experiment_name(Path(config.study)))
    children = client.search_runs([experiment.experiment_id], "tags.`mars.kind` = 'calibration'")
    finished = [child for child in children if child.info.status == "FINISHED"]
    assert sorted(child.data.tags["mars.run_id"] for child in finished) == sorted(metrics(config).run_id.unique())
    for child in finished:
        steps = [point.step for point in client.get_metric_history(child.info.run_id, "val_loss")]
        assert len(steps) == len(set(steps)) == len(metrics(config).step.unique())


@dataclass(frozen=True)
class Training:
    """When a pack was trained, by which flow run and under which slot."""

    slot: str
    start: datetime
    end: datetime

    def meets(self, other: Training) -> bool:
        return self.start < other.end and other.start < self.end


def training(stack: Running, run: dict[str, Any]) -> Training:
    """What the log of a finished pack says of its slot, and Prefect of its training task."""
    only = {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "sort": "TIMESTAMP_ASC"}

    def holding() -> list[dict[str, Any]]:
        return [line for line in stack.post("/logs/filter", only) if line["message"].startswith("holding ")]

    def tasks() -> list[dict[str, Any]]:
        found = stack.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        return [task for task in found if task["name"].startswith("calibrate ") and task["end_time"]]

    wait_until(lambda: holding() and tasks(), seconds=120)  # both are written in the background
    (held,), (task,) = holding(), tasks()
    return Training(held["message"].removeprefix("holding "), moment(held["timestamp"]), moment(task["end_time"]))


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def packs_of(stack: Running, config: StudyConfig, state: str | None = None) -> list[dict[str, Any]]:
    found = stack.runs_of(PACK, config.study)
    return [run for run in found if state is None or run["state"]["type"] == state]


def calibrate(stack: Running, config: StudyConfig) -> UUID:
    return stack.start(CALIBRATE, config=config.model_dump(mode="json"))


def most_at_once(stack: Running, run: UUID) -> int:
    """Wait for a calibration to complete; returns the largest number of slots that were seen held at one moment."""
    most = 0

    def ended() -> bool:
        nonlocal most
        limits = stack.post("/v2/concurrency_limits/filter")
        most = max(most, sum(one["active_slots"] for one in limits if one["name"].startswith("mars-")))
        return stack.state(run)["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

    wait_until(ended)
    stack.complete(run)
    return most


def test_as_many_packs_at_once_as_there_are_hosts(stack, hosts, alone, fresh):
    hosts(*(f"gpu-host-{number}" for number in range(1, HOSTS)))
    run = calibrate(stack, fresh)
    most = most_at_once(stack, run)
    packs = packs_of(stack, fresh)
    trainings = [training(stack, pack) for pack in packs]
    at_once = max(sum(one.start <= other.start < one.end for one in trainings) for other in trainings)
    print(f"{len(packs)} packs on {HOSTS} hosts: {at_once} trained at once, {most} slots seen held at once")
    assert [pack["state"]["type"] for pack in packs] == ["COMPLETED"] * len(alone.calibration.seeds) * 4
    assert len({one.slot for one in trainings}) == at_once == HOSTS
    assert most == HOSTS
    assert not any(one.meets(other) for one, other in combinations(trainings, 2) if one.slot == other.slot)
    assert_as_alone(fresh, alone)
    assert_tracked_once(stack, fresh)


def test_two_workers_of_one_host_take_turns(stack, hosts, alone, fresh):
    # The second worker has this host's name, so both have the same CPU.
    hosts("second-worker", before=f"hostname {socket.gethostname()}")
    run = calibrate(stack, fresh)
    assert most_at_once(stack, run) == 1
    packs = packs_of(stack, fresh)
    workers = Counter(stack.get(f"/flow_runs/{pack['id']}")["labels"]["prefect.worker.name"] for pack in packs)
    assert set(workers) == {"worker-gpu", "second-worker"}
    trainings = [training(stack, pack) for pack in packs]
    assert {one.slot for one in trainings} == {slot_name("cpu")}
    assert not any(one.meets(other) for one, other in combinations(trainings, 2))
    assert_as_alone(fresh, alone)


def test_packs_of_hosts_that_die_are_trained_elsewhere(stack, hosts, alone, fresh, soon_noticed):
    """One host dies while it trains, one while the pack's process starts: no one tells, yet all goes on by itself."""
    (dies_training,) = hosts("dies-training")
    run = calibrate(stack, fresh)
    wait_until(lambda: len(packs_of(stack, fresh, "RUNNING")) == 2)
    (dies_starting,) = hosts("dies-starting")
    wait_until(lambda: taken_by(stack, fresh, dies_starting, "PENDING"))
    dies_starting.die()
    (pack,) = taken_by(stack, fresh, dies_training, "RUNNING")
    wait_until(lambda: has_checkpoint(fresh, pack))
    dies_training.die()
    took = wait_until(lambda: len(packs_of(stack, fresh, "CRASHED")) == 2)
    print(f"both were shown as crashed {took:.0f} s after the second host had died")
    stack.complete(run)
    packs = packs_of(stack, fresh)
    assert Counter(one["state"]["type"] for one in packs) == {
        "COMPLETED": len(alone.calibration.seeds) * 4,
        "CRASHED": 2,
    }
    messages = {one["state"]["message"] for one in packs if one["state"]["type"] == "CRASHED"}
    assert messages == {
        "No heartbeat any more: the worker is gone.",
        "It was taken but never began: the worker is gone.",
    }
    again = next(one for one in packs if one["name"] == f"{pack['name']} (attempt 2)")
    assert training(stack, again).slot == slot_name("cpu")
    assert any("going on after step" in line for line in lines(stack, again))
    assert_as_alone(fresh, alone)
    assert_tracked_once(stack, fresh)
    wait_until(lambda: not any(one["active_slots"] for one in stack.post("/v2/concurrency_limits/filter")), seconds=90)


def taken_by(stack: Running, config: StudyConfig, host: Host, state: str) -> list[dict[str, Any]]:
    packs = packs_of(stack, config, state)
    return [run for run in packs if run["labels"].get("prefect.worker.name") == host.name]


def has_checkpoint(config: StudyConfig, pack: dict[str, Any]) -> bool:
    folder = Revision(Path(config.study), 1).path("calibration", "state", content_hash(pack["parameters"]["runs"]))
    return (folder / "state.safetensors").is_file()


def lines(stack: Running, run: dict[str, Any]) -> list[str]:
    only = {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "sort": "TIMESTAMP_ASC"}
    return [line["message"] for line in stack.post("/logs/filter", only)]


def test_a_calibration_that_lost_its_worker_joins_its_packs_when_started_again(stack, alone, fresh, soon_noticed):
    first = calibrate(stack, fresh)
    wait_until(lambda: len(packs_of(stack, fresh)) == len(alone.calibration.seeds) * 4)
    wait_until(lambda: packs_of(stack, fresh, "RUNNING"))
    under_way = {pack["id"] for pack in packs_of(stack, fresh)}
    worker = psutil.Process(stack.process("worker-cpu"))
    for process in [worker, *worker.children(recursive=True)]:
        process.kill()
    bring_up(stack.folder, stack.ports)
    again = calibrate(stack, fresh)
    stack.complete(again)
    packs = packs_of(stack, fresh)
    assert {pack["id"] for pack in packs} == under_way  # joined, not started twice
    assert [pack["state"]["type"] for pack in packs] == ["COMPLETED"] * len(alone.calibration.seeds) * 4
    assert_as_alone(fresh, alone)
    wait_until(lambda: stack.state(first)["type"] == "CRASHED", seconds=180)


def test_a_host_with_other_data_refuses(stack, hosts, alone, fresh, tmp_path):
    other = build_demo_data(tmp_path / "other", n_train=500, n_validation=24, n_test=12, seed=1).folder
    data = Path(alone.data.train).parent
    hosts("stale-host", before=f"mount --bind {other} {data}")
    state = stack.finish(calibrate(stack, fresh))
    assert state["type"] == "FAILED"
    failed = packs_of(stack, fresh, "FAILED")
    assert {one["labels"]["prefect.worker.name"] for one in failed} == {"stale-host"}
    for one in failed:
        assert "data, model or code on stale-host differ" in one["state"]["message"]
        assert one["name"] in state["message"]


def test_a_final_run_goes_before_packs_that_wait(stack, copied, fresh):
    run = calibrate(stack, fresh)
    wait_until(lambda: packs_of(stack, fresh, "RUNNING"))
    final = stack.start("mars-final/final-finetune", config=copied.model_dump(mode="json"), r_me=2, r_llm=4)
    stack.complete(run)
    stack.complete(final)
    first, *waited = sorted(packs_of(stack, fresh), key=lambda pack: moment(pack["start_time"]))
    started = moment(stack.get(f"/flow_runs/{final}")["start_time"])
    assert moment(first["end_time"]) < started < min(moment(pack["start_time"]) for pack in waited)
    trainings = [training(stack, pack) for pack in waited]
    gaps = [round((after.start - before.end).total_seconds(), 1) for before, after in pairwise(trainings)]
    print(f"seconds from the end of a pack's training to the next one on the same worker: {gaps}")
