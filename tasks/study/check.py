"""Check a study's data as a task: once per content, however often the study is started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import task

from mars_core import __version__
from mars_core.metrics.identity import content_hash
from tasks.inputs.data import check_data
from tasks.inputs.opened import Inputs, open_inputs
from tasks.settings.study import StudyConfig, require_full_paths
from tasks.study.revision import recipe_hash


def prepare_for_workers(config: StudyConfig) -> None:
    """Refuse a study that workers cannot run: relative paths, bad rows, bad images."""
    require_full_paths(config)
    check_study_data(open_inputs(config))


def content_key(context: Any, parameters: Mapping[str, Any]) -> str:
    """Cache key of a task over a study's data: data hash, recipe hash and code version."""
    inputs: Inputs = parameters["inputs"]
    return content_hash([context.task.name, inputs.data.data_hash, recipe_hash(inputs.config), __version__])


@task(name="check-data", cache_key_fn=content_key, persist_result=True, result_serializer="json")
def check_study_data(inputs: Inputs) -> dict[str, Any]:
    """Read every row and decode every image; returns counts.

    Raises:
        ValueError: rows or images are bad; names the first of them.
    """
    report = check_data(inputs.config.data)
    report.raise_if_bad()
    return {"rows": report.rows, "tasks": dict(report.tasks), "notes": list(report.notes)}
