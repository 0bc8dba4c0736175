"""Which runs' models the MLflow registry calls champion."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from tasks.tracking.outage import known_down
from tasks.tracking.registry import CHAMPION
from tasks.tracking.runs import tracking_uri


@dataclass(frozen=True)
class Champions:
    """MLflow runs behind registered versions with the alias `champion`, and the revisions these runs are tagged with.

    known: False where the registry could not be asked.
    """

    runs: frozenset[str] = frozenset()
    revisions: frozenset[int] = frozenset()
    known: bool = True


def find_champions(study: Path) -> Champions:
    """Ask the registry of a study's tracking store."""
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (study / "mlflow.db").is_file():
        return Champions()  # nothing was ever tracked, so nothing was registered; asking would make a database
    uri, named = tracking_uri(study), os.environ.get("MLFLOW_TRACKING_URI")
    if named and known_down(named):
        return Champions(known=False)  # the study's own store, used meanwhile, knows nothing of that server's registry
    client = mlflow.MlflowClient(uri)
    try:
        runs = frozenset(_champion_runs(client))
        tags = [client.get_run(run).data.tags for run in runs]
    except MlflowException:
        return Champions(known=False)
    return Champions(runs, frozenset(int(tag["mars.revision"]) for tag in tags if tag.get("mars.revision")))


def _champion_runs(client: mlflow.MlflowClient) -> Iterator[str]:
    token: str | None = None
    while True:
        page = client.search_registered_models(page_token=token)
        for model in page:
            if CHAMPION in model.aliases:
                version = client.get_model_version_by_alias(model.name, CHAMPION)
                if version.run_id:
                    yield str(version.run_id)
        token = page.token
        if not token:
            return
