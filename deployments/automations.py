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
from pydantic import BaseModel, ConfigDict, Field

RUN = {"prefect.resource.id": "prefect.flow-run.*"}
OURS: list[Any] = [
    {"prefect.resource.role": "flow", "prefect.resource.name": "mars-*"},
    {"prefect.resource.role": "deployment"},
]
EACH_RUN = {"prefect.resource.id"}
ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "TimedOut", "Crashed", "Cancelled")}
WAITING = {f"prefect.flow-run.{state}" for state in ("Paused", "Suspended", "Cancelling")}
# Without a window the server may fire twice for one event (seen with 3.8.8, when events arrive out of order).
ONCE_WITHIN = timedelta(minutes=5)
HEARTBEAT = "prefect.flow-run.heartbeat"
PENDING, RUNNING = "prefect.flow-run.Pending", "prefect.flow-run.Running"
# On other pools, Kubernetes for one, a pod may wait for a GPU for hours before its run begins.
PROCESS_POOL = {"prefect.resource.role": "work-pool", "prefect.work-pool.type": "process"}

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

    pending_minutes: float = Field(30, ge=1, description="A run that is pending this long without starting is stuck")
    starting_minutes: float = Field(
        10, ge=1, description="A run that a process worker took this long ago without beginning it has lost its worker"
    )
    running_hours: float = Field(48, gt=0, description="A run that runs longer than this is stuck")
    silence_seconds: float = Field(180, ge=60, description="A run without heartbeat for this long has lost its worker")
    notify: str | None = Field(
        None,
        pattern=r"^[a-z0-9-]+/[a-z0-9-]+$",
        description="Block to notify, as TYPE/NAME, such as slack-webhook/mars or webhook/mars; none: the events only",
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
    """Create the automations that are missing, with default settings; returns their names. Those that are there stay.

    What a team set with `register_automations` must outlive the next start of the stack.
    """
    missing = [one for one in automations(DEFAULTS, DoNothing()) if not client.read_automations_by_name(one.name)]
    return [wanted.name for wanted in missing if client.create_automation(wanted)]


def automations(settings: AutomationSettings, tell: ActionTypes) -> tuple[AutomationCore, ...]:
    """The automations; `tell` is the action that tells people."""
    silence = timedelta(seconds=settings.silence_seconds)
    pending = timedelta(minutes=settings.pending_minutes)
    starting = timedelta(minutes=settings.starting_minutes)
    return (
        _automation(
            "mars: run failed", "A run crashed, failed or timed out.",
            _seen({f"prefect.flow-run.{state}" for state in ("Crashed", "Failed", "TimedOut")}), [tell],
        ),
        _automation(
            "mars: run late", "A run was not picked up in time: no worker polls its work pool or queue.",
            _seen({"prefect.flow-run.Late"}), [tell],
        ),
        _automation(
            "mars: run stuck pending", f"A run was handed to a worker but has not started within {pending}.",
            _missed({PENDING}, {RUNNING, *ENDED, *WAITING}, pending), [tell],
        ),
        _automation(
            "mars: run stuck running", f"A run has not ended within {settings.running_hours:g} hours.",
            _missed({RUNNING}, ENDED | WAITING, timedelta(hours=settings.running_hours)), [tell],
        ),
        _automation(
            "mars: worker lost", f"A run has sent no heartbeat for {silence}; it is marked as crashed.",
            _missed({HEARTBEAT, RUNNING}, {HEARTBEAT, *ENDED, *WAITING}, silence),
            [_crash("No heartbeat any more: the worker is gone.")],
        ),
        _automation(
            "mars: worker lost at start",
            f"A worker took a run but has not begun it within {starting}; it is marked as crashed.",
            _missed({PENDING}, {RUNNING, *ENDED, *WAITING}, starting, PROCESS_POOL),
            [_crash("It was taken but never began: the worker is gone.")],
        ),
    )  # fmt: skip


def _automation(name: str, description: str, trigger: EventTrigger, actions: list[ActionTypes]) -> AutomationCore:
    return AutomationCore(name=name, description=description, enabled=True, trigger=trigger, actions=actions)


def _seen(events: set[str]) -> EventTrigger:
    """Fires when one of the events is seen, and for each run once in `ONCE_WITHIN`."""
    return _for_each_run(posture=Posture.Reactive, expect=events, within=ONCE_WITHIN)


def _missed(after: set[str], expected: set[str], within: timedelta, *related: Mapping[str, str]) -> EventTrigger:
    """Fires when none of the expected events follows in time; only for runs that are `related` to what is given."""
    return _for_each_run(*related, posture=Posture.Proactive, after=after, expect=expected, within=within)


def _for_each_run(*related: Mapping[str, str], **when: Any) -> EventTrigger:
    """A trigger that watches every deployed run of ours on its own."""
    return EventTrigger(match=RUN, match_related=[*OURS, *related], for_each=EACH_RUN, threshold=1, **when)


def _crash(message: str) -> ActionTypes:
    """Mark the run as crashed: whoever waits for it starts it again."""
    return ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=message, force=False)


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
