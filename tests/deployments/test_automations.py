"""Automations on a real Prefect server: registered once, and they fire when a run's process dies."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.automations import AutomationSettings, add_automations, register_automations

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
    """A web server that keeps what is posted to it."""
    received: list[dict] = []

    class Keep(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Keep)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", received
    server.shutdown()
    server.server_close()


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
    late = client.read_automations_by_name("mars: run late")[0]
    client.pause_automation(late.id)
    slower = AutomationSettings(pending_minutes=90)
    assert register_automations(client, slower) == {
        name: "updated" if name == "mars: run stuck pending" else "unchanged" for name in first
    }
    assert not client.read_automations_by_name("mars: run late")[0].enabled
    pending = client.read_automations_by_name("mars: run stuck pending")[0]
    assert pending.trigger.within.total_seconds() == 90 * 60


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
    fired = waited_for(lambda: events(client, "prefect.automation.action.executed"))
    assert f"prefect.automation.{automation.id}" in {event["resource"]["prefect.resource.id"] for event in fired}
    assert len(received) == 1  # the other automations had nothing to say
