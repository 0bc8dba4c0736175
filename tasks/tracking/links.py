"""Links both ways between a Prefect run and an MLflow run."""

from __future__ import annotations

import os
from urllib.parse import quote, urlsplit, urlunsplit

from prefect.artifacts import create_link_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.utilities.urls import url_for

# MLflow's address in a browser, where workers reach the server under another one.
BROWSER_VARIABLE = "MARS_MLFLOW_UI"
ARTIFACT_KEY = "mars-mlflow"
# Without it, MLflow's UI shows a first visitor the pages around it that are for GenAI applications.
TRAINING_VIEW = "workflowType=machine_learning"


def prefect_tags() -> dict[str, str]:
    """MLflow tags that lead to the Prefect flow run around the caller, none outside one."""
    run = flow_run.get_id()
    if not run:
        return {}
    url = url_for("flow-run", run) if get_current_settings().api.url else None  # a temporary server has no lasting URL
    return {"prefect.flow_run_id": str(run)} | ({"prefect.flow_run_url": url} if url else {})


def mlflow_url(tracking_uri: str, experiment: str, run: str, artifact: str | None = None) -> str | None:
    """Address of a run, or of a file among its artifacts, in MLflow's UI; None where the store is a database file.

    It holds no user name and no password.
    """
    parts = urlsplit(os.environ.get(BROWSER_VARIABLE) or tracking_uri)
    if parts.scheme not in ("http", "https"):
        return None
    host = parts.netloc.rpartition("@")[2]
    page = f"/experiments/{experiment}/runs/{run}" + (f"/artifacts/{quote(artifact)}" if artifact else "")
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/") + "/", "", f"{page}?{TRAINING_VIEW}"))


def link_to_mlflow(tracking_uri: str, experiment: str, run: str, name: str) -> None:
    """Show an MLflow run on the Prefect run around the caller; nothing outside one, or without an MLflow server."""
    url = mlflow_url(tracking_uri, experiment, run)
    if url and (FlowRunContext.get() or TaskRunContext.get()):
        create_link_artifact(url, link_text=f"MLflow run {name}", key=ARTIFACT_KEY, description=name)
