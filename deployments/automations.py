"""Prefect automations: what the server does on its own when a deployed run crashes, waits or runs too long.

They watch runs that a deployment made, of flows whose name begins with `mars-`; a run started by hand has a person in
front of it. Whom they tell is a block in Prefect, which also keeps its secrets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, CallWebhook, ChangeFlowRunState, DoNothing, SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from pydantic import BaseModel, ConfigDict, Field

from deployments.catalogue import DEPLOYMENTS, POOLS, Pool

RUN = {"prefect.resource.id": "prefect.flow-run.*"}
OURS = "mars-*"
EACH_RUN = {"prefect.resource.id"}
# Every event of a run has a flow, and that its role is "flow": one window for all runs that a trigger watches.
TOGETHER = {"related:flow:prefect.resource.role"}
ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "TimedOut", "Crashed", "Cancelled")}
WAITING = {f"prefect.flow-run.{state}" for state in ("Paused", "Suspended", "Cancelling")}
PUT_BACK = {f"prefect.flow-run.{state}" for state in ("Scheduled", "AwaitingConcurrencySlot", "AwaitingRetry", "Late")}
PENDING, RUNNING, LATE = (f"prefect.flow-run.{state}" for state in ("Pending", "Running", "Late"))
# Without a window the server may fire twice for one event (seen with 3.8.8, when events arrive out of order).
ONCE_WITHIN = timedelta(minutes=5)
HEARTBEAT = "prefect.flow-run.heartbeat"
# On other pools, Kubernetes for one, a pod may wait for a GPU for hours before its run begins.
PROCESS_POOL = {"prefect.resource.role": "work-pool", "prefect.work-pool.type": "process"}

FAILED, STUCK_PENDING, STUCK_RUNNING, LOST, LOST_AT_START = (
    f"mars: {what}"
    for what in ("run failed", "run stuck pending", "run stuck running", "worker lost", "worker lost at start")
)

SUBJECT = "MARS: {{ automation.name }}"
BODY = """{{ automation.description }}

Flow run: {{ flow_run.name }} ({{ flow_run.state.name }})
{{ flow_run | ui_url }}
"""
PAYLOAD = """{"subject": {{ automation.name | tojson }}, "flow_run": {{ flow_run.name | tojson }},
 "flow_run_id": {{ flow_run.id | string | tojson }}, "state": {{ flow_run.state.name | tojson }},
 "url": {{ flow_run | ui_url | tojson }}}"""


class AutomationSettings(BaseModel):
    """When a run counts as stuck, and whom to tell."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    late_minutes: float = Field(
        10, ge=1, description="A run that waits is late if its work pool shows no sign of life for this long"
    )
    pending_minutes: float = Field(30, ge=1, description="A run that is pending this long without starting is stuck")
    starting_minutes: float = Field(
        10, ge=1, description="A run that a process worker took this long ago without beginning it has lost its worker"
    )
    running_hours: float = Field(
        48, gt=0, description="A run that runs longer than this is stuck; waiting for a GPU's slot counts"
    )
    # A run of ours beats every 30 s, one of a flow that somebody serves himself every 180 s, Prefect's default: a
    # limit that is not above that would mark healthy runs as crashed.
    silence_seconds: float = Field(
        400,
        ge=60,
        description="A run without heartbeat for this long has lost its worker; more than twice the time between beats",
    )
    notify: str | None = Field(
        None,
        pattern=r"^[a-z0-9-]+/[a-z0-9-]+$",
        description="Block to notify, as TYPE/NAME, such as slack-webhook/mars or webhook/mars (at first nobody)",
    )


DEFAULTS = AutomationSettings()


def register_automations(client: SyncPrefectClient, settings: AutomationSettings = DEFAULTS) -> dict[str, str]:
    """Create the automations that are missing and correct those that differ; one that a person paused stays paused.

    Returns:
        What was done by name: `created`, `updated` or `unchanged`.

    Raises:
        ValueError: there is no block `settings.notify`.
    """
    tell = _notification(client, settings.notify)
    return {wanted.name: _register(client, wanted) for wanted in automations(settings, tell)}


def add_automations(client: SyncPrefectClient) -> list[str]:
    """Create the automations that are missing; returns their names. Those that are there stay as they are.

    What a team set with `register_automations` must outlive the next start of the stack. Whom the others tell, the new
    ones tell too.
    """
    settings = present_settings(client)
    wanted = automations(settings, _notification(client, settings.notify))
    missing = [one for one in wanted if not client.read_automations_by_name(one.name)]
    return [one.name for one in missing if client.create_automation(one)]


def present_settings(client: SyncPrefectClient) -> AutomationSettings:
    """The settings of the automations that the server has; defaults for those that are missing.

    Raises:
        ValueError: somebody gave an automation a value that is out of bounds here.
    """
    windows = {
        "late_minutes": (late_name(POOLS[0]), timedelta(minutes=1)),
        "pending_minutes": (STUCK_PENDING, timedelta(minutes=1)),
        "running_hours": (STUCK_RUNNING, timedelta(hours=1)),
        "silence_seconds": (LOST, timedelta(seconds=1)),
        "starting_minutes": (LOST_AT_START, timedelta(minutes=1)),
    }
    values: dict[str, Any] = {}
    for setting, (name, unit) in windows.items():
        for automation in client.read_automations_by_name(name):
            if isinstance(automation.trigger, EventTrigger):
                values[setting] = automation.trigger.within / unit
    for automation in client.read_automations_by_name(FAILED):
        values["notify"] = _told(client, automation)
    return AutomationSettings(**values)


def _told(client: SyncPrefectClient, automation: Automation) -> str | None:
    """The block that an automation tells, as TYPE/NAME; None where it tells nobody, or the block is gone."""
    document = getattr(automation.actions[0], "block_document_id", None) if automation.actions else None
    if document is None:
        return None
    try:
        block = client.read_block_document(document, include_secrets=False)
    except ObjectNotFound:
        return None
    return f"{block.block_type.slug}/{block.name}" if block.block_type else None


def late_name(pool: Pool) -> str:
    """Name of the automation that watches whether a pool has workers."""
    return f"mars: run late on {pool.name}"


def automations(settings: AutomationSettings, tell: ActionTypes) -> tuple[AutomationCore, ...]:
    """The automations; `tell` is the action that tells people."""
    silence = timedelta(seconds=settings.silence_seconds)
    pending = timedelta(minutes=settings.pending_minutes)
    late, starting = timedelta(minutes=settings.late_minutes), timedelta(minutes=settings.starting_minutes)
    return (
        _automation(
            FAILED, "A run crashed, failed or timed out.",
            _seen({f"prefect.flow-run.{state}" for state in ("Crashed", "Failed", "TimedOut")}), [tell],
        ),
        *(
            _automation(
                late_name(pool), f"A run waits, and for {late} no run of the pool has started, ended or sent a "
                f"heartbeat: no worker takes runs from {pool.name}.", _not_picked_up(pool, late), [tell],
            )
            for pool in POOLS
        ),
        _automation(
            STUCK_PENDING, f"A run was handed to a worker but has not started within {pending}.",
            _missed({PENDING}, {RUNNING, *ENDED, *WAITING, *PUT_BACK}, pending), [tell],
        ),
        _automation(
            STUCK_RUNNING, f"A run has not ended within {settings.running_hours:g} hours.",
            _missed({RUNNING}, ENDED | WAITING, timedelta(hours=settings.running_hours)), [tell],
        ),
        _automation(
            LOST, f"A run has sent no heartbeat for {silence}; it is marked as crashed.",
            _missed({HEARTBEAT, RUNNING}, {HEARTBEAT, *ENDED, *WAITING}, silence),
            [_crash("No heartbeat any more: the worker is gone.")],
        ),
        _automation(
            LOST_AT_START, f"A worker took a run but has not begun it within {starting}; it is marked as crashed.",
            _missed({PENDING}, {RUNNING, *ENDED, *WAITING, *PUT_BACK}, starting, PROCESS_POOL),
            [_crash("It was taken but never began: the worker is gone.")],
        ),
    )  # fmt: skip


def _automation(name: str, description: str, trigger: EventTrigger, actions: list[ActionTypes]) -> AutomationCore:
    return AutomationCore(name=name, description=description, enabled=True, trigger=trigger, actions=actions)


def _seen(events: set[str]) -> EventTrigger:
    """Fires when one of the events is seen, and for each run once in `ONCE_WITHIN`."""
    return _trigger(OURS, EACH_RUN, posture=Posture.Reactive, expect=events, within=ONCE_WITHIN)


def _missed(after: set[str], expected: set[str], within: timedelta, *related: Mapping[str, str]) -> EventTrigger:
    """Fires for a run when none of the expected events follows in time; only for runs `related` to what is given."""
    return _trigger(OURS, EACH_RUN, *related, posture=Posture.Proactive, after=after, expect=expected, within=within)


def _crash(message: str) -> ActionTypes:
    """Mark the run as crashed: whoever waits for it starts it again."""
    return ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=message, force=False)


def _not_picked_up(pool: Pool, within: timedelta) -> EventTrigger:
    """Fires when a run of a pool is late and no other shows that somebody works there.

    Prefect calls every run late that waits longer than 15 s, also for a worker that is busy training another; and
    heartbeats do not name the pool, so that its flows stand for it.
    """
    flows = [load_flow_from_entrypoint(one.entrypoint).name for one in DEPLOYMENTS if one.pool == pool.name]
    life = {PENDING, RUNNING, HEARTBEAT, *ENDED, *WAITING}
    return _trigger(flows, TOGETHER, posture=Posture.Proactive, after={LATE}, expect=life, within=within)


def _trigger(flows: str | list[str], for_each: set[str], *others: Mapping[str, str], **when: Any) -> EventTrigger:
    """A trigger that watches deployed runs of flows of these names, related to all `others` too."""
    related: list[Any] = [
        {"prefect.resource.role": "flow", "prefect.resource.name": flows},
        {"prefect.resource.role": "deployment"},
        *others,
    ]
    return EventTrigger(match=RUN, match_related=related, for_each=for_each, threshold=1, **when)


def _notification(client: SyncPrefectClient, block: str | None) -> ActionTypes:
    if block is None:
        return DoNothing()
    kind, _, name = block.partition("/")
    try:
        document = client.read_block_document_by_name(name, kind, include_secrets=False)
    except ObjectNotFound as error:
        raise ValueError(
            f"there is no Prefect block {block!r} to notify: create it in the UI under Blocks, or leave `notify` out"
        ) from error
    if kind == "webhook":
        return CallWebhook(block_document_id=document.id, payload=PAYLOAD)
    return SendNotification(block_document_id=document.id, subject=SUBJECT, body=BODY)


def _register(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    known = client.read_automations_by_name(wanted.name)
    if not known:
        client.create_automation(wanted)
        return "created"
    present = known[0]
    kept = wanted.model_copy(update={"enabled": present.enabled})
    if _content(present) == _content(kept):
        return "unchanged"
    client.update_automation(present.id, kept)
    return "updated"


def _content(automation: Automation | AutomationCore) -> Any:
    """What an automation says, in a form that does not depend on the order of sets."""
    return _sorted(automation.model_dump(mode="json", include={"description", "enabled", "trigger", "actions"}))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return sorted((_sorted(item) for item in value), key=repr)
    return value
