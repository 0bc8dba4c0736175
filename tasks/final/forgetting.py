"""What the final adapters gained on the target tasks and lost on the upstream tasks, beside the base model.

STUDY/revisions/001/forgetting/NAME.parquet   every sample's score (tasks.final.upstream_scores)
STUDY/revisions/001/forgetting.json           E, F, O and every task with intervals, and failure signs, by role
STUDY/revisions/001/final/NAME/forgetting.json   the same of a baseline of `mars compare`
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from peft import PeftModel
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from mars_core.evaluation.forgetting import Forgetting, failure_signs, measure
from mars_core.metrics.identity import content_hash
from mars_core.models.lora import remove_adapters
from tasks.final.arm import Arm
from tasks.final.compare import compared_before, training_stage
from tasks.final.evaluate import metric_name
from tasks.final.pair import final_folder, finetune_stage
from tasks.final.pairs import final_arms
from tasks.final.record import FinalRecord, read_final
from tasks.final.run import run_folder
from tasks.final.upstream_scores import score_model, task_scores, write_scores
from tasks.running.progress import show_message
from tasks.running.retrying import IO_RETRIES
from tasks.settings.baselines import Baseline
from tasks.storage.files import read_json, write_json
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.stage import Stage
from tasks.tracking import runs as tracking

BASE = "base"
TABLE_FILE = "forgetting/forgetting.csv"  # in MLflow
DESCRIPTION = "Gained on the target tasks (E), forgotten elsewhere (F), average of both scores (O), in points"


@task(name="measure-forgetting", cache_policy=NO_CACHE, persist_result=False, **IO_RETRIES)
def measure_forgetting(study: Study, finals: Mapping[str, Arm]) -> str:
    """Score base model and final adapters on target and upstream tasks; returns the path of E, F and O."""
    base = base_scores(study)
    found: dict[str, Any] = {}
    for role, arm in finals.items():
        record = read_final(study.revision, arm)
        tuned = adapter_scores(study, final_folder(study.revision, arm) / "adapter")
        write_scores(tuned, scores_path(study.revision, role))
        found[role] = described(base, tuned, record.history)
        tracking.log_values_if_known(record.mlflow_run_id, forgetting_values(found[role]))
    write_json(forgetting_path(study.revision), found)
    rows = [shown(role, one) for role, one in found.items()]
    for arm in finals.values():
        run = read_final(study.revision, arm).mlflow_run_id
        tracking.log_file_if_known(run, forgetting_path(study.revision), "forgetting")
        tracking.log_table_if_known(run, rows, TABLE_FILE)
    create_table_artifact(rows, key="mars-forgetting", description=DESCRIPTION)
    return str(forgetting_path(study.revision))


@task(name="measure-forgetting-of-baseline", cache_policy=NO_CACHE, persist_result=False)
def measure_baseline(study: Study, baseline: Baseline) -> str:
    """The same of a baseline of `mars compare`; returns the path of its E, F and O."""
    folder = run_folder(study.revision, baseline)
    base = base_scores(study)
    model = study.inputs.final_base_model
    loaded = baseline.method.load(model.model, folder / baseline.method.result)
    try:
        tuned = score_model(study.inputs, model, loaded)
    finally:
        baseline.method.unwrap(loaded)
    record = FinalRecord.from_json(read_json(folder / "training.json"))
    found = described(base, tuned, record.history)
    write_scores(tuned, folder / "forgetting.parquet")
    rows = [shown(baseline.name, found)]
    tracking.log_values_if_known(record.mlflow_run_id, forgetting_values(found))
    tracking.log_table_if_known(record.mlflow_run_id, rows, TABLE_FILE)
    create_table_artifact(rows, key="mars-forgetting-baseline", description=DESCRIPTION)
    write_json(folder / "forgetting.json", found)
    return str(folder / "forgetting.json")


def base_scores(study: Study) -> pa.Table:
    """The base model's scores; asked once per revision and set of tasks."""
    path = scores_path(study.revision, f"{BASE}-{_asked(study)[:12]}")
    if not path.is_file():
        base = study.inputs.final_base_model
        show_message("forgetting: asking the base model")
        write_scores(score_model(study.inputs, base, base.model), path)
    return pq.read_table(path)


def adapter_scores(study: Study, adapter: Path) -> pa.Table:
    """Scores of the base model with a PEFT adapter.

    Raises:
        ValueError: there is no adapter in the folder.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise ValueError(f"no PEFT adapter in {adapter}: give a folder with adapter_config.json")
    base = study.inputs.final_base_model
    wrapped = PeftModel.from_pretrained(base.model, str(adapter))
    try:
        return score_model(study.inputs, base, wrapped)
    finally:
        remove_adapters(wrapped)


def described(base: pa.Table, tuned: pa.Table, history: Any) -> dict[str, Any]:
    """E, F, O and all tasks with intervals, and what speaks against the adapter, as JSON values."""
    found = measure(task_scores(base, tuned))
    # What was not finite is stored as none.
    losses = [math.nan if entry["loss"] is None else float(entry["loss"]) for entry in history if "loss" in entry]
    signs = [sign.to_json() for sign in failure_signs(found, losses)]
    return found.to_json() | {"signs": signs}


def forgetting_values(found: Mapping[str, Any]) -> dict[str, float]:
    """E, F, O and every task's scores by the names that MLflow shows them under."""
    values = {f"forgetting_{name}": found[name]["value"] for name in ("E", "F", "O") if found[name] is not None}
    for one in found["tasks"]:
        values[f"forgetting/{metric_name(one['name'])}/before"] = one["base"]["value"]
        values[f"forgetting/{metric_name(one['name'])}/after"] = one["tuned"]["value"]
    return values


def shown(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """One row of a table, methods by tasks."""
    row: dict[str, Any] = {"model": name}
    for symbol in ("E", "F", "O"):
        row[symbol] = None if found[symbol] is None else round(found[symbol]["value"], 1)
    return row | {one["name"]: f"{one['base']['value']:.1f} -> {one['tuned']['value']:.1f}" for one in found["tasks"]}


def forgetting_path(revision: Revision) -> Path:
    """Where E, F and O of the final adapters lie."""
    return revision.path("forgetting.json")


def scores_path(revision: Revision, name: str) -> Path:
    """Where a model's score of every sample lies."""
    return revision.path("forgetting", f"{name}.parquet")


def _asked(study: Study) -> str:
    """Hash of what is asked and of the base model."""
    inputs = study.inputs
    asked = [inputs.upstream_hash, inputs.data.hashes["test"], study.config.recipe.max_tokens]
    return content_hash([inputs.fingerprint, *asked])


def _outputs(study: Study) -> list[Path]:
    return [forgetting_path(study.revision), *(scores_path(study.revision, role) for role in final_arms(study))]


FORGETTING = Stage(
    "evaluate-forgetting",
    reads=lambda study: [finetune_stage(arm) for arm in final_arms(study).values()],
    inputs=lambda study, finals: content_hash([sorted(final_arms(study)), _asked(study), finals]),
    outputs=_outputs,
)


def forgetting_stage(baseline: Baseline) -> Stage:
    """A baseline's E, F and O as a stage."""
    return Stage(
        f"forgetting-{baseline.slug}",
        reads=lambda _: (training_stage(baseline),),
        inputs=lambda study, trained: content_hash([trained, _asked(study)]),
        outputs=lambda study: (run_folder(study.revision, baseline) / "forgetting.json",),
    )


def forgetting_table(study: Study) -> dict[str, dict[str, Any]]:
    """E, F and O by model: final runs by role, then the baselines that `mars compare` has trained."""
    table = dict(read_forgetting(study) or {})
    if study.config.upstream:
        for baseline in compared_before(study):
            if baseline.pair is None or baseline.name not in table:
                found = read_baseline_forgetting(study.revision, baseline.slug)
                if found is not None and forgetting_stage(baseline).is_finished(study):
                    table[baseline.name] = found
    return table


def read_forgetting(study: Study) -> dict[str, Any] | None:
    """E, F and O of the present final runs by role; None where they were not measured as the study now asks."""
    if not study.config.upstream or not forgetting_path(study.revision).is_file():
        return None
    if any(not finetune_stage(arm).is_finished(study) for arm in final_arms(study).values()):
        return None
    if not FORGETTING.is_finished(study):
        return None
    found: dict[str, Any] = read_json(forgetting_path(study.revision))
    return found


def read_baseline_forgetting(revision: Revision, slug: str) -> dict[str, Any] | None:
    """The same of a baseline, None where it was not measured."""
    path = revision.path("final", slug, "forgetting.json")
    return dict(read_json(path)) if path.is_file() else None


def forgetting_of(study: Study, arm: Arm) -> Forgetting:
    """E, F and O of a final run: as stored where that is present, else measured now."""
    stored = read_forgetting(study) or {}
    for role, own in final_arms(study).items():
        if own == arm and role in stored:
            return Forgetting.from_json(stored[role])
    tuned = adapter_scores(study, final_folder(study.revision, arm) / "adapter")
    return measure(task_scores(base_scores(study), tuned))
