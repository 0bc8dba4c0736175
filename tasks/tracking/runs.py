"""MLflow: a parent run for the study, a child run per calibration run, a run per final fine-tune.

Tracking goes to MLFLOW_TRACKING_URI when it is set, else to an SQLite store in the study folder.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import LifecycleStage, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking.context.registry import resolve_tags

from mars_core.metrics.identity import content_hash
from tasks.running.addresses import part_credentials
from tasks.running.progress import show_message
from tasks.storage.location import study_key
from tasks.tracking import links
from tasks.tracking.machine_load import machine_load
from tasks.tracking.outage import UNTRACKED, answers, known_down, never_blocks, tracked_block

EXPERIMENT_PREFIX = "mars/"
# Hash of what decides a run; and that a finished run was made again from the same.
INPUTS_TAG, SUPERSEDED_TAG = "mars.inputs", "mars.superseded"
# Most that MLflow takes in one request.
MOST_PARAMS, MOST_METRICS = 100, 1000

logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
# MLflow would name the file that Python was started with: on a worker, one of Prefect's.
SOURCE = {"mlflow.source.name": "mars", "mlflow.source.type": "LOCAL"}
logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)


def tracking_uri(study: Path) -> str:
    """Where runs of a study are tracked: the user's server where it answers, else the study's own store."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    return named if named and answers(named) else _own_store(study)


def _own_store(study: Path) -> str:
    return f"sqlite:///{study / 'mlflow.db'}"


def shown_uri(study: Path) -> str:
    """The same as people may see it: without a password."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    used = named if named and not known_down(named) else _own_store(study)
    return re.sub(r"(://[^:/@]*):[^/\s]*@", r"\1:***@", used)


def use_store(study: Path) -> None:
    """Point this process's MLflow at the study's store.

    A login in a server's address goes where MLflow looks for one too: its errors and its records name the address.
    """
    users = os.environ.get("MLFLOW_TRACKING_URI")
    uri = tracking_uri(study)
    if uri.startswith(("http://", "https://")):
        uri, user, password = part_credentials(uri)
        if user is not None:
            os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = user, password or ""
    mlflow.set_tracking_uri(uri)
    # MLflow writes the variable too: it would pass for the user's own, and the next study would share this store.
    if users is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = users
    foreign = os.environ.pop("MLFLOW_RUN_ID", None)  # MLflow would take it for the next run that is begun
    if foreign is not None:
        show_message(f"note: MLFLOW_RUN_ID ({foreign}) is left aside: a study has runs of its own")


def experiment_name(study: Path) -> str:
    """Name of a study's experiment: the folder's name for people, and a hash of its path.

    Studies whose folders are called alike must not share runs on a shared server.
    """
    return f"{EXPERIMENT_PREFIX}{study.name}-{content_hash(study_key(study))[:8]}"


def open_experiment(study: Path) -> str:
    """Return the id of the study's experiment in its store, made if it is not there."""
    study.mkdir(parents=True, exist_ok=True)
    use_store(study)
    name = experiment_name(study)
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is not None:
        if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
            mlflow.MlflowClient().restore_experiment(experiment.experiment_id)
            show_message(
                f"note: the study's experiment {name} was deleted in MLflow; it is restored, to be recorded in"
            )
        return str(experiment.experiment_id)
    artifacts = (study / "mlartifacts").resolve().as_uri() if tracking_uri(study) == _own_store(study) else None
    # Without the kind, MLflow's UI opens the experiment among those of GenAI applications.
    tags = {"mars.study": study_key(study), "mlflow.experimentKind": "custom_model_development"}
    try:
        return str(mlflow.create_experiment(name, artifact_location=artifacts, tags=tags))
    except MlflowException as error:  # another process of the study was faster
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        made = mlflow.get_experiment_by_name(name)
        if made is None:
            raise
        return str(made.experiment_id)


def study_run(study: Path, revision: int, parameters: Mapping[str, Any]) -> AbstractContextManager[str]:
    """Open the parent run of a revision, again if it exists, and yield its id."""
    return tracked_block(_study_run(study, revision, parameters))


@contextmanager
def _study_run(study: Path, revision: int, parameters: Mapping[str, Any]) -> Iterator[str]:
    experiment = open_experiment(study)
    known = find_run(experiment, {"mars.kind": "study", "mars.revision": str(revision)})
    tags = {"mars.kind": "study", "mars.revision": str(revision)} | SOURCE | links.prefect_tags()
    name = f"{study.name} r{revision:03d}"
    with mlflow.start_run(
        run_id=known, experiment_id=experiment, run_name=name, tags=tags, log_system_metrics=False
    ) as run:
        _log_missing_params(run.info.run_id, parameters)
        links.link_to_mlflow(mlflow.get_tracking_uri(), experiment, run.info.run_id, name)
        with machine_load([run.info.run_id]):
            yield run.info.run_id


def child_run(
    parent: str | None, name: str, parameters: Mapping[str, Any], tags: Mapping[str, str]
) -> AbstractContextManager[str]:
    """Run a block as a run nested under `parent`; it ends FAILED if the block raises.

    A run of the same name that a killed process left open is closed as KILLED.
    """
    return tracked_block(_child_run(parent, name, parameters, tags))


@contextmanager
def _child_run(parent: str | None, name: str, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[str]:
    client = mlflow.MlflowClient()
    experiment = client.get_run(parent).info.experiment_id if parent else None
    if parent and experiment:
        _close_abandoned(client, experiment, parent, name)
        _mark_repeated(client, experiment, parent, name, tags.get(INPUTS_TAG))
    with mlflow.start_run(
        experiment_id=experiment,
        run_name=name,
        nested=True,
        parent_run_id=parent,
        tags=dict(tags) | SOURCE | links.prefect_tags(),
        log_system_metrics=False,
    ) as run:
        mlflow.log_params(flatten(parameters))
        links.link_to_mlflow(mlflow.get_tracking_uri(), run.info.experiment_id, run.info.run_id, name)
        with machine_load([run.info.run_id]):
            yield run.info.run_id


def _close_abandoned(client: mlflow.MlflowClient, experiment: str, parent: str, name: str) -> None:
    open_ones = f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment], open_ones):
        if run.info.run_name == name:
            client.set_terminated(run.info.run_id, "KILLED")


def _mark_repeated(client: mlflow.MlflowClient, experiment: str, parent: str, name: str, inputs: str | None) -> None:
    """Tag finished runs that are about to be made again from the very same inputs.

    Their process died, or their files were lost, before their stage was recorded.
    """
    if inputs is None:
        return
    same = f"tags.`mlflow.parentRunId` = '{parent}' and tags.`{INPUTS_TAG}` = '{inputs}'"
    for run in client.search_runs([experiment], f"{same} and attributes.status = 'FINISHED'"):
        if run.info.run_name == name:
            client.set_tag(run.info.run_id, SUPERSEDED_TAG, "true")


@never_blocks(UNTRACKED)
def begin_child(parent: str, name: str, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Begin a run nested under `parent` that ends with `end_child`; one with these tags still open is gone on with.

    Unlike `child_run`, many can be open at once.
    """
    client = mlflow.MlflowClient()
    experiment = client.get_run(parent).info.experiment_id
    tags = {"mlflow.parentRunId": parent, **tags}
    known = find_run(experiment, tags, "attributes.status = 'RUNNING'")
    if known is not None:
        tag(known, links.prefect_tags())
        _log_missing_params(known, parameters)
        return known
    made = client.create_run(experiment, tags=resolve_tags(tags | SOURCE | links.prefect_tags()), run_name=name)
    run_id = str(made.info.run_id)
    _log_params(run_id, flatten(parameters))
    links.link_to_mlflow(mlflow.get_tracking_uri(), experiment, run_id, name)
    return run_id


def _log_missing_params(run_id: str, parameters: Mapping[str, Any]) -> None:
    """Log the parameters that a run does not have: a process may have been killed between making it and this."""
    known = mlflow.MlflowClient().get_run(run_id).data.params
    _log_params(run_id, {key: value for key, value in flatten(parameters).items() if key not in known})


def _log_params(run_id: str, parameters: Mapping[str, Any]) -> None:
    logged = [Param(key, str(value)) for key, value in parameters.items()]
    for start in range(0, len(logged), MOST_PARAMS):
        mlflow.MlflowClient().log_batch(run_id, params=logged[start : start + MOST_PARAMS])


@never_blocks(None)
def end_child(run_id: str, status: str = "FINISHED") -> None:
    """End a run that `begin_child` began, as FINISHED, FAILED or KILLED."""
    mlflow.MlflowClient().set_terminated(run_id, status)


@never_blocks(list[str]())
def open_children(parent: str, tags: Mapping[str, str]) -> list[str]:
    """Ids of the runs nested under `parent`, with these tags, that have not ended."""
    client = mlflow.MlflowClient()
    experiment = client.get_run(parent).info.experiment_id
    asked = " and ".join(f"tags.`{key}` = '{value}'" for key, value in {"mlflow.parentRunId": parent, **tags}.items())
    found = client.search_runs([experiment], f"{asked} and attributes.status = 'RUNNING'", max_results=1000)
    return [str(run.info.run_id) for run in found]


def find_run(experiment: str, tags: Mapping[str, str], *conditions: str) -> str | None:
    """Id of the newest run with these tags (and conditions in MLflow's words), None if there is none."""
    query = " and ".join([*(f"tags.`{key}` = '{value}'" for key, value in tags.items()), *conditions])
    found = mlflow.MlflowClient().search_runs([experiment], query, max_results=1)
    return str(found[0].info.run_id) if found else None


def now() -> int:
    """The time as MLflow counts it, in milliseconds."""
    return int(time.time() * 1000)


@never_blocks(False)
def log_new_steps(run_id: str, rows: Sequence[Mapping[str, float]], metric: str) -> bool:
    """Log the rows at whose steps a run has no `metric` yet; gives whether the run has all of them now."""
    send_new_steps(run_id, rows, metric)
    return True


def send_new_steps(run_id: str, rows: Sequence[Mapping[str, float]], metric: str) -> None:
    """Log the rows at whose steps a run has no `metric` yet.

    Raises:
        MlflowException: MLflow did not answer, or refused; the same call may be made again.
    """
    if run_id == UNTRACKED:
        return
    known = {point.step for point in mlflow.MlflowClient().get_metric_history(run_id, metric)}
    send_steps(run_id, [row for row in rows if row["step"] not in known])


@never_blocks(None)
def log_steps(run_id: str, rows: Sequence[Mapping[str, float]], *, step_key: str = "step") -> None:
    """Log rows of metrics, each at its step."""
    send_steps(run_id, rows, step_key=step_key)


def send_steps(
    run_id: str, rows: Sequence[Mapping[str, float]], *, step_key: str = "step", times: Sequence[int] | None = None
) -> None:
    """Log rows of metrics, each at its step, in few requests, none of which ends within a row.

    times: of each row, by default now; rows that may be sent twice need the same time both times.

    Raises:
        MlflowException: MLflow did not answer, or refused; some rows may have arrived.
    """
    if run_id == UNTRACKED:
        return
    # Of equal steps, MLflow takes the one with the latest time for the current value.
    times = times or [now()] * len(rows)
    client = mlflow.MlflowClient()
    waiting: list[Metric] = []
    for row, at in zip(rows, times, strict=True):
        metrics = [
            Metric(key, float(value), at, int(row[step_key]))
            for key, value in row.items()
            if key != step_key and isinstance(value, (int, float))
        ]
        if len(waiting) + len(metrics) > MOST_METRICS:
            client.log_batch(run_id, metrics=waiting)
            waiting = []
        waiting += metrics
    if waiting:
        client.log_batch(run_id, metrics=waiting)


@never_blocks(None)
def log_values(run_id: str, values: Mapping[str, float]) -> None:
    """Log single values."""
    log_steps(run_id, [{"step": 0, **values}])


@never_blocks(None)
def log_values_if_known(run_id: str, values: Mapping[str, float]) -> None:
    """Log single values to a run, unless it was tracked in another machine's store."""
    if is_tracked(run_id):
        log_values(run_id, values)
    else:
        show_message(
            f"MLflow run {run_id} is not in this store, or was deleted there (its list of deleted runs restores it): "
            "values are not logged to it"
        )


@never_blocks(None)
def log_file_if_known(run_id: str, path: Path, folder: str | None = None) -> None:
    """Attach a file that exists to a run that this store has."""
    if path.is_file() and is_tracked(run_id):
        log_file(run_id, path, folder)


@never_blocks(None)
def log_table_if_known(run_id: str, rows: Sequence[Mapping[str, Any]], file: str) -> None:
    """Attach a table, one mapping a row, as CSV, which MLflow's UI shows as a table, to a run that this store has."""
    if is_tracked(run_id):
        mlflow.MlflowClient().log_text(run_id, pd.DataFrame(rows).to_csv(index=False), file)


@never_blocks(False)
def is_tracked(run_id: str) -> bool:
    """Whether this store has a run, not deleted; one that another machine tracked may be in that machine's own."""
    try:
        run = mlflow.MlflowClient().get_run(run_id)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return False
    return str(run.info.lifecycle_stage) == LifecycleStage.ACTIVE


@never_blocks(None)
def log_file(run_id: str, path: Path, folder: str | None = None) -> None:
    """Attach a file, or everything in a folder, to a run."""
    client = mlflow.MlflowClient()
    if path.is_dir():
        client.log_artifacts(run_id, str(path), folder)
    else:
        client.log_artifact(run_id, str(path), folder)


@never_blocks(None)
def page_of(run_id: str, artifact: str) -> str | None:
    """Where MLflow's UI shows a file of a run; None where there is no MLflow server."""
    experiment = mlflow.MlflowClient().get_run(run_id).info.experiment_id
    return links.mlflow_url(mlflow.get_tracking_uri(), experiment, run_id, artifact)


@never_blocks(None)
def tag(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags on a run."""
    client = mlflow.MlflowClient()
    for key, value in tags.items():
        client.set_tag(run_id, key, value)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted parameter names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat
