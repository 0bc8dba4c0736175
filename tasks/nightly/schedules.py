"""Nightly schedules on a Prefect server: one per study, all on the deployment `nightly-recalibration`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import DeploymentSchedule, FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, NoSchedule, RRuleSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from pydantic import ValidationError

from mars_core.metrics.identity import content_hash
from tasks.service.trigger import require_server
from tasks.settings.study import StudyConfig
from tasks.storage.location import study_key, working_folder

NIGHTLY_DEPLOYMENT = "mars-nightly/nightly-recalibration"


@dataclass(frozen=True)
class NightlySchedule:
    """When a study is recalibrated.

    study: where its settings are read, None where the schedule names none. when: a cron line, an interval or a
    recurrence rule. trigger: what a material change leads to. active: whether it fires. upcoming: the next run that
    the server has planned, None until it has planned one (within a minute).
    """

    study: str | None
    when: str
    timezone: str
    trigger: str
    active: bool
    upcoming: datetime | None


def set_schedule(
    config: StudyConfig, place: str, cron: str, timezone: str, trigger: str
) -> Literal["created", "changed"]:
    """Recalibrate a study whenever `cron` says so; a study has one such schedule.

    place: full path or URL of the study file or the study folder, where the settings are read every night.

    Raises:
        ValueError: the cron line or the time zone makes no sense, or no server knows the deployment.
    """
    schedule = _cron(cron, timezone)
    parameters = {"study": place, "trigger": trigger}
    with _client() as client:
        deployment = _deployment(client)
        known = _find(client, deployment, config)
        if known is None:
            new = DeploymentScheduleCreate(schedule=schedule, active=True, parameters=parameters, slug=slug(config))
            client.create_deployment_schedules(deployment.id, [new])
            return "created"
        client.update_deployment_schedule(
            deployment.id, known.id, active=True, schedule=schedule, parameters=parameters
        )
        return "changed"


def remove_schedule(config: StudyConfig) -> None:
    """End a study's schedule; a night that is under way goes on.

    Raises:
        ValueError: the study has none.
    """
    with _client() as client:
        deployment = _deployment(client)
        known = _find(client, deployment, config)
        if known is None:
            raise ValueError(
                f"{config.study} has no schedule that `mars schedule set` made: `mars schedule list` shows all"
            )
        client.delete_deployment_schedule(deployment.id, known.id)


def schedules() -> list[NightlySchedule]:
    """Every schedule of the nightly deployment, those made in the Prefect UI too.

    Raises:
        ValueError: no server knows the deployment.
    """
    with _client() as client:
        deployment = _deployment(client)
        planned = _planned(client, deployment)
        return [_described(one, deployment, planned) for one in client.read_deployment_schedules(deployment.id)]


def slug(config: StudyConfig) -> str:
    """Name of a study's schedule: the same on every machine for a study at a URL."""
    return f"nightly-{content_hash(study_key(working_folder(config.study)))[:16]}"


def _client() -> SyncPrefectClient:
    require_server()
    return get_client(sync_client=True)


def _deployment(client: SyncPrefectClient) -> DeploymentResponse:
    try:
        return client.read_deployment_by_name(NIGHTLY_DEPLOYMENT)
    except ObjectNotFound as error:
        raise ValueError(
            f"the Prefect server has no deployment {NIGHTLY_DEPLOYMENT!r}: "
            "register it with `python -m deployments.register`"
        ) from error


def _cron(cron: str, timezone: str) -> CronSchedule:
    try:
        return CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        raise ValueError(
            f"cron line {cron!r} in time zone {timezone!r} is no schedule ({error.errors()[0]['msg']}): expected five "
            "fields (minute hour day month weekday) such as '0 2 * * *', and a zone such as UTC or Europe/Berlin"
        ) from error


def _find(client: SyncPrefectClient, deployment: DeploymentResponse, config: StudyConfig) -> DeploymentSchedule | None:
    wanted = slug(config)
    return next((one for one in client.read_deployment_schedules(deployment.id) if one.slug == wanted), None)


def _planned(client: SyncPrefectClient, deployment: DeploymentResponse) -> list[FlowRun]:
    """Runs of the deployment that have not begun, the soonest first."""
    only = FlowRunFilter.model_validate(
        {"deployment_id": {"any_": [deployment.id]}, "state": {"type": {"any_": [StateType.SCHEDULED]}}}
    )
    return client.read_flow_runs(flow_run_filter=only, sort=FlowRunSort.EXPECTED_START_TIME_ASC)


def _described(one: DeploymentSchedule, deployment: DeploymentResponse, planned: list[FlowRun]) -> NightlySchedule:
    parameters = deployment.parameters | one.parameters
    study = _study(parameters)
    fires = one.active and not deployment.paused
    runs = [run.expected_start_time for run in planned if fires and _study(run.parameters) == study]
    return NightlySchedule(
        study=study,
        when=_when(one.schedule),
        timezone=str(getattr(one.schedule, "timezone", None) or "UTC"),
        trigger=str(parameters.get("trigger", "propose")),
        active=fires,
        upcoming=runs[0] if runs else None,
    )


def _study(parameters: dict[str, Any]) -> str | None:
    return parameters.get("study")


def _when(schedule: CronSchedule | IntervalSchedule | RRuleSchedule | NoSchedule) -> str:
    if isinstance(schedule, CronSchedule):
        return schedule.cron
    if isinstance(schedule, NoSchedule):
        return "never"
    return f"every {schedule.interval}" if isinstance(schedule, IntervalSchedule) else schedule.rrule
