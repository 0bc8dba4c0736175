"""Automations on a real Prefect server: registered once, and they fire when a run's process dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.settings.models.flows import FlowsSettings

from deployments.automations import (
    DEFAULTS,
    AutomationSettings,
    add_automations,
    present_settings,
    register_automations,
)
from deployments.catalogue import RUN_ENVIRONMENT
from tests.conftest import ROOT
from tests.deployments.receiver import receiving

pytestmark = pytest.mark.stack

SCRIPT = """
import os, signal
from prefect import flow

@flow(name="mars-test-crash")
def crash():
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    crash.serve(name="crash")
"""


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as client:
        yield client
        for automation in client.read_automations():
            client.delete_automation(automation.id)


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict]]]:
    with receiving() as found:
        yield found


def events(client: SyncPrefectClient, name: str) -> list[dict]:
    found = client.request("POST", "/events/filter", json={"filter": {"event": {"name": [name]}}, "limit": 50})
    return found.json()["events"]


def waited_for(found, seconds: float = 120):
    end = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < end, f"nothing within {seconds} s"
        time.sleep(0.5)
    return result


def test_what_a_team_set_outlives_a_new_registration(client):
    added = add_automations(client)
    assert len(added) == len(register_automations(client)) > 0
    register_automations(client, AutomationSettings(running_hours=3))
    assert add_automations(client) == []
    assert set(register_automations(client, AutomationSettings(running_hours=3)).values()) == {"unchanged"}


def test_registering_twice_changes_nothing_and_a_paused_automation_stays_paused(client):
    first = register_automations(client)
    assert set(first.values()) == {"created"}
    assert set(register_automations(client).values()) == {"unchanged"}
    assert len(client.read_automations()) == len(first)
    late = client.read_automations_by_name("mars: run late on mars-gpu")[0]
    client.pause_automation(late.id)
    slower = AutomationSettings(pending_minutes=90)
    assert register_automations(client, slower) == {
        name: "updated" if name == "mars: run stuck pending" else "unchanged" for name in first
    }
    assert not client.read_automations_by_name("mars: run late on mars-gpu")[0].enabled
    pending = client.read_automations_by_name("mars: run stuck pending")[0]
    assert pending.trigger.within.total_seconds() == 90 * 60


def test_two_heartbeats_fit_into_the_silence_that_counts_as_a_lost_worker():
    """A beat that comes when the window has closed counts as missed: the run would be marked as crashed."""
    assert DEFAULTS.silence_seconds > 2 * FlowsSettings.model_fields["heartbeat_frequency"].default
    shortest = AutomationSettings.model_fields["silence_seconds"].metadata[0].ge
    assert shortest >= 2 * int(RUN_ENVIRONMENT["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])


def register(server: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PREFECT_API_URL": server, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "deployments.register", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_options_of_the_command_set_what_they_name_and_nothing_else(client, prefect_server, receiver):
    """What was set before stays, also when the command runs again without options, as `mars up` does."""
    Webhook(url=receiver[0], allow_private_urls=True).save("mars-test", overwrite=True)
    first = register(prefect_server, "--notify", "webhook/mars-test", "--late-minutes", "3")
    assert first.returncode == 0, first.stderr
    assert "automation mars: run failed: created" in first.stdout
    assert present_settings(client) == AutomationSettings(notify="webhook/mars-test", late_minutes=3)
    set_once = present_settings(client)
    for options, message in [
        (("--pending-minutes", "0.5"), "--pending-minutes: Input should be greater than or equal to 1, got 0.5"),
        (("--notify", "webhook/nobody"), "no Prefect block 'webhook/nobody'"),
    ]:
        refused = register(prefect_server, *options)
        assert refused.returncode != 0
        assert message in refused.stderr
    client.delete_automation(client.read_automations_by_name("mars: run stuck pending")[0].id)
    assert register(prefect_server).returncode == 0
    assert present_settings(client) == set_once
    (remade,) = client.read_automations_by_name("mars: run stuck pending")
    assert remade.actions[0].type == "call-webhook"  # it tells whom the others tell
    second = register(prefect_server, "--running-hours", "72", "--notify", "none")
    assert "automation mars: run stuck running: updated" in second.stdout
    assert present_settings(client) == AutomationSettings(late_minutes=3, running_hours=72)


def test_a_block_that_does_not_exist_is_a_callers_mistake(client):
    with pytest.raises(ValueError, match="no Prefect block 'slack-webhook/nobody'"):
        register_automations(client, AutomationSettings(notify="slack-webhook/nobody"))
    assert client.read_automations() == []


def test_a_run_whose_process_dies_is_notified(client, serving, receiver):
    address, received = receiver
    Webhook(url=address, allow_private_urls=True).save("mars-test", overwrite=True)
    register_automations(client, AutomationSettings(notify="webhook/mars-test"))
    serving(SCRIPT)

    def deployment():
        return next((d for d in client.read_deployments() if d.name == "crash"), None)

    run = client.create_flow_run_from_deployment(waited_for(deployment).id)
    waited_for(lambda: received)
    assert received[0]["subject"] == "mars: run failed"
    assert received[0]["flow_run"] == run.name
    assert received[0]["state"] == "Crashed"
    assert received[0]["flow_run_id"] == str(run.id)
    assert str(run.id) in received[0]["url"]
    automation = client.read_automations_by_name("mars: run failed")[0]

    def fired() -> bool:
        executed = events(client, "prefect.automation.action.executed")
        return any(
            event["resource"]["prefect.resource.id"] == f"prefect.automation.{automation.id}" for event in executed
        )

    waited_for(fired)
    assert len(received) == 1  # the other automations had nothing to say
