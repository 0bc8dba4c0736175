"""Register work pools, queues, limits, deployments and automations with a Prefect server.

Run as `python -m deployments.register` with PREFECT_API_URL set. Running it again changes only what differs, and keeps
what people set in the UI: schedules, paused deployments, concurrency limits of queues, settings of automations.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.types.entrypoint import EntrypointType
from prefect.workers.process import ProcessWorker
from pydantic import ValidationError

from deployments.automations import AutomationSettings, add_automations, present_settings, register_automations
from deployments.catalogue import DEPLOYMENTS, POOLS, RUN_ENVIRONMENT, Deployed, Pool
from mars_core import __version__
from tasks.service.device_slot import register_slot
from tasks.service.trigger import require_server

NOBODY = "none"


def _option(name: str, more: str = "") -> Any:
    field = AutomationSettings.model_fields[name]
    default = "" if field.default is None else f" (at first {field.default:g})"
    return typer.Option(help=f"{field.description}{more}{default}", show_default=False)


def main(
    notify: Annotated[str | None, _option("notify", f"; `{NOBODY}` to tell nobody any more")] = None,
    late_minutes: Annotated[float | None, _option("late_minutes")] = None,
    pending_minutes: Annotated[float | None, _option("pending_minutes")] = None,
    starting_minutes: Annotated[float | None, _option("starting_minutes")] = None,
    running_hours: Annotated[float | None, _option("running_hours")] = None,
    silence_seconds: Annotated[float | None, _option("silence_seconds")] = None,
) -> None:
    """Register work pools, queues, limits, deployments and automations with the server of PREFECT_API_URL.

    The options set what the automations do and change nothing else; without them, automations that are there stay.
    """
    asked = {
        "notify": notify,
        "late_minutes": late_minutes,
        "pending_minutes": pending_minutes,
        "starting_minutes": starting_minutes,
        "running_hours": running_hours,
        "silence_seconds": silence_seconds,
    }
    try:
        require_server()
        with get_client(sync_client=True) as client:
            done = _register_automations(client, {name: value for name, value in asked.items() if value is not None})
            _register_rest(client)
    except ValueError as error:
        sys.exit(f"error: {error}")
    for name, what in done.items():
        print(f"automation {name}: {what}")


def _register_automations(client: SyncPrefectClient, asked: dict[str, Any]) -> dict[str, str]:
    """First of all, since a mistake in the options must leave everything as it is."""
    if asked.get("notify") == NOBODY:
        asked["notify"] = None
    try:
        if not asked:
            return dict.fromkeys(add_automations(client), "created")
        settings = AutomationSettings(**(present_settings(client).model_dump() | asked))
    except ValidationError as error:
        raise ValueError("; ".join(_explain(dict(fault)) for fault in error.errors())) from error
    return register_automations(client, settings)


def _explain(fault: dict[str, Any]) -> str:
    option = str(fault["loc"][0]).replace("_", "-")
    return f"--{option}: {fault['msg']}, got {fault['input']!r}"


def _register_rest(client: SyncPrefectClient) -> None:
    for pool in POOLS:
        register_pool(client, pool)
        print(f"work pool {pool.name}: queues {', '.join(pool.queues)}")
    print(f"limit {register_slot('auto')}: one training at a time on this machine's device")
    for deployed in DEPLOYMENTS:
        register_deployment(client, deployed)
        print(f"deployment {deployed.name} on {deployed.pool}/{deployed.queue}")


def register_pool(client: SyncPrefectClient, pool: Pool) -> None:
    """Create a process work pool with its queues, or bring it up to date."""
    template = ProcessWorker.get_default_base_job_template()
    try:
        client.create_work_pool(
            WorkPoolCreate(name=pool.name, type="process", description=pool.description, base_job_template=template)
        )
    except ObjectAlreadyExists:
        client.update_work_pool(pool.name, WorkPoolUpdate(description=pool.description))
    for priority, queue in enumerate(pool.queues, start=1):
        _register_queue(client, pool.name, queue, priority)


def _register_queue(client: SyncPrefectClient, pool: str, queue: str, priority: int) -> None:
    try:
        known = client.read_work_queue_by_name(queue, work_pool_name=pool)
    except ObjectNotFound:
        client.create_work_queue(queue, work_pool_name=pool, priority=priority)
        return
    if known.priority != priority:
        client.update_work_queue(known.id, priority=priority)


def register_deployment(client: SyncPrefectClient, deployed: Deployed) -> None:
    """Create a deployment or bring it up to date."""
    flow: Flow[..., object] = load_flow_from_entrypoint(deployed.entrypoint)
    RunnerDeployment.from_flow(
        flow,
        name=deployed.name,
        parameters=deployed.parameters,
        description=summary_of(flow),
        tags=list(deployed.tags),
        version=__version__,
        work_pool_name=deployed.pool,
        work_queue_name=deployed.queue,
        job_variables={"env": RUN_ENVIRONMENT},
        entrypoint_type=EntrypointType.MODULE_PATH,
    ).apply()


def summary_of(flow: Flow[..., object]) -> str:
    """What a flow does, for people: its description up to the parameters, which the form describes."""
    return (flow.description or "").partition("\n\nArgs:")[0]


if __name__ == "__main__":
    typer.run(main)
