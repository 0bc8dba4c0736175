"""Every MLflow run of a finished study has the machine's load: parent, calibration runs of seconds, final runs."""

from __future__ import annotations

from pathlib import Path

import mlflow

from tasks.tracking.machine_load import PREFIX
from tasks.tracking.runs import experiment_name, tracking_uri


def test_every_run_that_the_product_trained_has_system_metrics(finished):
    client = mlflow.MlflowClient(tracking_uri(Path(finished.study)))
    experiment = client.get_experiment_by_name(experiment_name(Path(finished.study)))
    runs = client.search_runs([experiment.experiment_id])
    kinds = [run.data.tags["mars.kind"] for run in runs]
    assert {kind: kinds.count(kind) for kind in ("study", "calibration")} == {"study": 1, "calibration": 4}
    assert kinds.count("final") in (1, 2)  # the chosen pair may be the uniform default
    for run in runs:
        load = {name.removeprefix(PREFIX) for name in run.data.metrics if name.startswith(PREFIX)}
        assert {"cpu_utilization_percentage", "system_memory_usage_megabytes"} <= load, run.info.run_name
