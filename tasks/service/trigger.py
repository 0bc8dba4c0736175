"""Start runs of deployments exactly once per attempt, and wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.utilities.urls import url_for

from mars_core.metrics.identity import content_hash
from tasks.running.progress import show_message
from tasks.running.retrying import DELAYS_SECONDS, is_passing

POLL_SECONDS = 2.0
PAGE = 200  # flow runs that the server gives at a time
# A crash is the machine's: killed, out of memory, restarted. One that comes back twice is the run's own.
ATTEMPTS_AFTER_CRASHES = 3


@dataclass(frozen=True)
class Request:
    """A run of a deployment that shall happen once.

    deployment: "flow name/deployment name". identity: hash of everything that makes two requests the same one.
    name: of the flow run.
    """

    deployment: str
    identity: str
    name: str
    parameters: Mapping[str, Any] = field(hash=False)
    tags: tuple[str, ...] = ()

    def key(self, attempt: int) -> str:
        """Idempotency key of an attempt: the server keeps one run per key."""
        return content_hash([self.deployment, self.identity, attempt])


def start_once(request: Request) -> FlowRun:
    """Return the run of a request that is under way, or start one; runs that have ended count as past attempts.

    Two callers at the same moment get the same run: both ask for the same attempt, and the server keeps one run per
    key. The caller must have looked whether the work is already done.

    Raises:
        ValueError: no Prefect server is configured, or it does not know the deployment.
    """
    require_server()
    with get_client(sync_client=True) as client:
        for attempt in count(1):
            run = _known(client, request.key(attempt)) or _start(request, attempt)
            if run.state is None or not run.state.is_final():
                return run
    raise AssertionError("unreachable")


def online_workers(deployment: str) -> int | None:
    """How many workers take the runs of a deployment at the moment, one at a time each.

    None where that cannot be told: on pools where a worker starts a machine per run, or where none is online yet.
    """
    with get_client(sync_client=True) as client:
        try:
            pool = client.read_work_pool(str(client.read_deployment_by_name(deployment).work_pool_name))
        except ObjectNotFound:
            return None  # whoever starts the runs says so
        if pool.type != "process":
            return None
        workers = client.read_workers_for_work_pool(pool.name)
    return sum(worker.status == WorkerStatus.ONLINE for worker in workers) or None


def require_server() -> None:
    """Refuse to go on without a Prefect server that outlives this command.

    Raises:
        ValueError: none is configured.
    """
    if not get_current_settings().api.url:
        raise ValueError(
            "this needs a Prefect server: start one with `mars up` and set PREFECT_API_URL as it says; "
            "training can also be done here (`--where here`)"
        )


def _known(client: SyncPrefectClient, key: str) -> FlowRun | None:
    only = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
    found = client.read_flow_runs(flow_run_filter=only, limit=1)
    return found[0] if found else None


def _start(request: Request, attempt: int) -> FlowRun:
    try:
        started = run_deployment(
            request.deployment,
            parameters=dict(request.parameters),
            timeout=0,
            flow_run_name=request.name if attempt == 1 else f"{request.name} (attempt {attempt})",
            tags=[*request.tags, f"attempt:{attempt}"],
            idempotency_key=request.key(attempt),
        )
    except ObjectNotFound as error:
        raise ValueError(
            f"the Prefect server has no deployment {request.deployment!r}: "
            "register them with `python -m deployments.register`"
        ) from error
    if not isinstance(started, FlowRun):  # run_deployment is a coroutine inside an event loop
        raise RuntimeError(f"{request.deployment} was triggered from an event loop: trigger it from synchronous code")
    show_message(f"{request.name}: {flow_run_url(started)}")
    return started


def flow_run_url(run: FlowRun) -> str:
    """Where a flow run is shown, or its id where no UI is known."""
    return url_for("flow-run", run.id) or f"flow run {run.id}"


def run_all(requests: Sequence[Request], on_done: Callable[[int], None] = lambda done: None) -> None:
    """Start every request and wait for all of them; a run that crashed is started again a few times.

    on_done: told how many have completed, each time one has. A failure keeps none of the others from finishing.

    Raises:
        RuntimeError: a run failed, was cancelled or kept crashing; names each.
    """
    under_way = {request: _start_patiently(request) for request in requests}
    crashes = dict.fromkeys(requests, 0)
    failures: list[str] = []
    done = 0
    while under_way:
        time.sleep(POLL_SECONDS)
        for request, run in _ended(under_way).items():
            del under_way[request]
            if run.state is not None and run.state.is_completed():
                done += 1
                on_done(done)
                continue
            crashes[request] += run.state is not None and run.state.is_crashed()
            if run.state is not None and run.state.is_crashed() and crashes[request] < ATTEMPTS_AFTER_CRASHES:
                show_message(f"{request.name} crashed, starting it again: {run.state.message}")
                under_way[request] = _start_patiently(request)
            else:
                failures.append(_describe(request, run))
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(requests)} runs did not complete: {'; '.join(failures)}")


def _start_patiently(request: Request) -> FlowRun:
    """`start_once`, asked again where the server fails: its key keeps the run from being made twice."""
    for delay in DELAYS_SECONDS:
        try:
            return start_once(request)
        except httpx.HTTPError as error:
            if not is_passing(error):
                raise
            show_message(f"the Prefect server does not answer ({error}), asking again in {delay} s")
            time.sleep(delay)
    return start_once(request)


def _ended(under_way: Mapping[Request, FlowRun]) -> dict[Request, FlowRun]:
    """The runs that have ended as they are now; one that somebody deleted has no state."""
    try:
        now = _read([run.id for run in under_way.values()])
    except httpx.HTTPError as error:  # the runs go on without the server; so does the wait for it
        if not is_passing(error):
            raise
        show_message(f"the Prefect server does not answer ({error}), asking again")
        return {}
    deleted = {request: run.model_copy(update={"state": None}) for request, run in under_way.items()}
    ended = {request: now.get(run.id, deleted[request]) for request, run in under_way.items()}
    return {request: run for request, run in ended.items() if run.state is None or run.state.is_final()}


def _read(ids: Sequence[UUID]) -> dict[UUID, FlowRun]:
    """Flow runs by id, a page at a time: the server has better things to do than to answer for each on its own."""
    found: dict[UUID, FlowRun] = {}
    with get_client(sync_client=True) as client:
        for start in range(0, len(ids), PAGE):
            only = FlowRunFilter(id=FlowRunFilterId(any_=list(ids[start : start + PAGE])))
            found |= {run.id: run for run in client.read_flow_runs(flow_run_filter=only, limit=PAGE)}
    return found


def _describe(request: Request, run: FlowRun) -> str:
    state = run.state
    ending = f"ended {state.name}: {state.message}" if state is not None else "was deleted"
    return f"{request.name} {ending} ({flow_run_url(run)})"
