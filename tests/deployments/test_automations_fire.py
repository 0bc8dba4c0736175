"""Every automation on a real server, by its real cause: all causes wait side by side, and each is told once.

The limits are the lowest that are allowed; the flows only sleep, in processes that real workers start.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessWorker

from deployments.automations import AutomationSettings, register_automations
from deployments.catalogue import RUN_ENVIRONMENT
from tests.conftest import wait_until
from tests.deployments.receiver import receiving
from tests.deployments.worker_process import kill_with_children, start_worker

pytestmark = pytest.mark.stack

# Names from the catalogue where the automation goes by them: `mars-report` belongs to mars-cpu, the pack to mars-gpu.
FLOWS = """
import time
from prefect import flow

@flow(name="mars-calibrate-pack")
def pack(seconds: float):
    time.sleep(seconds)

@flow(name="mars-report")
def report(seconds: float):
    time.sleep(seconds)

@flow(name="mars-test-sleep")
def ours(seconds: float):
    time.sleep(seconds)

@flow(name="theirs")
def theirs(seconds: float):
    time.sleep(seconds)
"""
WORKED_ON = ("hands", "doomed")
NAMES = {"pack": "mars-calibrate-pack", "report": "mars-report", "ours": "mars-test-sleep", "theirs": "theirs"}
# A healthy run lasts longer than every limit but that for running, which leaves its process time to end.
HEALTHY, RUNNING, FOR_EVER = 95, 150, 900
LIMITS = {"late_minutes": 1, "pending_minutes": 3, "running_hours": RUNNING / 3600, "silence_seconds": 60}
BEAT = {"env": RUN_ENVIRONMENT}
HANGS = {**BEAT, "command": f"sleep {FOR_EVER}"}  # a process that never comes to its flow


@dataclass
class Watch:
    """What was started, and what came of it."""

    client: SyncPrefectClient
    folder: Path
    received: list[dict[str, Any]]
    runs: dict[str, FlowRun] = field(default_factory=dict)

    def start(self, what: str, flow: str, queue: tuple[str, str], seconds: float, variables: Any = None) -> None:
        """Start a run of a deployment of its own."""
        pool, name = queue
        made = self.client.create_deployment(
            flow_id=self.client.create_flow_from_name(NAMES[flow]),
            name=f"{flow}-{what.replace(' ', '-')}",
            entrypoint=f"watched.py:{flow}",
            path=str(self.folder),
            work_pool_name=pool,
            work_queue_name=name,
            job_variables=BEAT if variables is None else variables,
        )
        self.runs[what] = self.client.create_flow_run_from_deployment(made, parameters={"seconds": seconds})

    def state(self, what: str) -> str:
        state = self.client.read_flow_run(self.runs[what].id).state
        return state.name if state else ""

    def has_beaten(self, what: str) -> bool:
        resource = {"id": [f"prefect.flow-run.{self.runs[what].id}"]}
        only = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": resource}
        found = self.client.request("POST", "/events/filter", json={"filter": only, "limit": 1})
        return bool(found.json()["events"])

    def subjects(self, what: str) -> list[str]:
        """What people were told about a run."""
        return [told["subject"] for told in self.received if told["flow_run_id"] == str(self.runs[what].id)]


@pytest.fixture(scope="module")
def watched(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    folder = tmp_path_factory.mktemp("watched")
    (folder / "watched.py").write_text(FLOWS)
    workers: list[subprocess.Popen[bytes]] = []
    with (
        temporary_settings({PREFECT_API_URL: prefect_server}),
        get_client(sync_client=True) as client,
        receiving() as (address, received),
    ):
        Webhook(url=address, allow_private_urls=True).save("mars-watched", overwrite=True)
        register_automations(client, AutomationSettings(**LIMITS, notify="webhook/mars-watched"))
        watch = Watch(client, folder, received)
        make_pools(client)
        try:
            workers += [start_worker(pool, prefect_server, folder) for pool in WORKED_ON]
            wait_until(lambda: all(is_online(client, pool) for pool in WORKED_ON), seconds=180)
            begin(watch)
            follow(watch, workers[1])
            yield watch
        finally:
            for worker in workers:
                kill_with_children(worker)
            for automation in client.read_automations():
                client.delete_automation(automation.id)


def make_pools(client: SyncPrefectClient) -> None:
    for pool in (*WORKED_ON, "nobody"):
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
    client.create_work_queue("one-at-a-time", work_pool_name="hands", concurrency_limit=1)


def begin(watch: Watch) -> None:
    hands, doomed, nobody = ("hands", "default"), ("doomed", "default"), ("nobody", "default")
    watch.start("healthy", "ours", hands, HEALTHY)
    watch.start("busy", "pack", ("hands", "one-at-a-time"), HEALTHY)
    watch.start("waits its turn", "pack", ("hands", "one-at-a-time"), 0)
    watch.start("endless", "ours", hands, FOR_EVER)
    watch.start("their endless", "theirs", hands, FOR_EVER)
    watch.start("hangs", "ours", hands, 0, HANGS)
    watch.start("their hanging", "theirs", hands, 0, HANGS)
    watch.start("late", "report", nobody, 0)
    watch.start("their late", "theirs", nobody, 0)
    watch.start("lost", "ours", doomed, FOR_EVER)
    watch.start("their lost", "theirs", doomed, FOR_EVER)


def is_online(client: SyncPrefectClient, pool: str) -> bool:
    workers = client.request("POST", "/work_pools/{name}/workers/filter", path_params={"name": pool}, json={}).json()
    return any(worker["status"] == "ONLINE" for worker in workers)


def follow(watch: Watch, doomed: subprocess.Popen[bytes]) -> None:
    """Wait until everything has happened that shall; say when."""
    started = time.monotonic()
    wait_until(lambda: watch.has_beaten("lost") and watch.has_beaten("their lost"), seconds=180)
    kill_with_children(doomed)
    print(f"worker killed after {time.monotonic() - started:.0f} s")
    for what in ("late", "hangs", "lost", "endless"):
        wait_until(lambda what=what: watch.subjects(what), seconds=300)
        print(f"{what}: {watch.subjects(what)} by {time.monotonic() - started:.0f} s")
    for what in ("healthy", "busy", "waits its turn"):
        wait_until(lambda what=what: watch.state(what) == "Completed", seconds=180)
    time.sleep(15)  # what would be told a second time, or of others, would be by now


@pytest.mark.parametrize(
    ("what", "subject", "states"),
    [
        ("late", "mars: run late on mars-cpu", {"Late"}),
        ("hangs", "mars: run stuck pending", {"Pending", "Submitting", "InfrastructurePending"}),
        ("endless", "mars: run stuck running", {"Running"}),
        ("lost", "mars: run failed", {"Crashed"}),
    ],
)
def test_each_cause_is_told_once(watched, what, subject, states):
    assert watched.subjects(what) == [subject]
    (told,) = [told for told in watched.received if told["flow_run_id"] == str(watched.runs[what].id)]
    assert told["flow_run"] == watched.runs[what].name
    assert told["state"] in states
    assert str(watched.runs[what].id) in told["url"]


def test_a_run_whose_worker_is_gone_is_marked_as_crashed(watched):
    state = watched.client.read_flow_run(watched.runs["lost"].id).state
    assert (state.name, state.type) == ("Crashed", "CRASHED")
    assert "No heartbeat" in state.message


@pytest.mark.parametrize("what", ["healthy", "busy", "waits its turn"])
def test_healthy_runs_are_told_nobody(watched, what):
    """One of them waits longer than the limit for its turn: Prefect calls it late, and its pool is alive."""
    assert watched.subjects(what) == []
    assert watched.state(what) == "Completed"
    states = [state.name for state in watched.client.read_flow_run_states(watched.runs[what].id)]
    assert "Late" in states or what != "waits its turn"


@pytest.mark.parametrize("what", ["their endless", "their hanging", "their late", "their lost"])
def test_runs_of_other_flows_are_nobodys_business(watched, what):
    assert watched.subjects(what) == []
    state = watched.client.read_flow_run(watched.runs[what].id).state
    assert not state.is_final()
