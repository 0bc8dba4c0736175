"""MLflow's model registry: every final adapter is a version; the alias `champion` names the accepted one.

A version points at the adapter folder among its run's artifacts: safetensors and JSON, nothing pickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks.tracking import runs as tracking

CHAMPION = "champion"


def model_name(study: Path) -> str:
    """Name of a study's first registered model: its experiment's, without what the registry forbids."""
    experiment = tracking.open_experiment(study)  # first: a client keeps the store that was set when it was made
    return str(MlflowClient().get_experiment(experiment).name).replace("/", "-").replace(":", "-")


def register_adapter(study: Path, name: str, run_id: str, tags: Mapping[str, str], description: str) -> str:
    """Register the adapter of a final run under a model; returns the version, the same one if it is there already.

    run_id: of a run that the study's tracking store has.
    """
    tracking.use_store(study)
    client = MlflowClient()
    _make_model(client, name)
    known = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if known:
        return str(known[0].version)
    version = client.create_model_version(
        name, source=f"runs:/{run_id}/adapter", run_id=run_id, tags=dict(tags), description=description
    )
    return str(version.version)


def move_champion(study: Path, name: str, version: str) -> None:
    """Let `champion` name a version of a model."""
    tracking.use_store(study)
    MlflowClient().set_registered_model_alias(name, CHAMPION, version)


def _make_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name, description="LoRA adapters of a MARS study, as PEFT saves them")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
