"""Score the base model and the final adapters on the test split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import PeftModel
from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core.models.lora import RankPair, remove_adapters
from mars_core.training.evaluation import Evaluation, Score, evaluate
from tasks import tracking
from tasks.config import StudyConfig
from tasks.data import scored_batches, test_set
from tasks.finetune import final_folder, read_final
from tasks.progress import progress_bar
from tasks.resources import final_base_model
from tasks.retrying import IO_RETRIES
from tasks.store import Revision, read_json, write_json


@task(name="evaluate-on-test", cache_policy=NO_CACHE, persist_result=False, **IO_RETRIES)
def evaluate_finals(config: StudyConfig, revision: Revision, finals: Mapping[str, RankPair]) -> str:
    """Score the base model and each final adapter, by role, on the test split; returns the path of the scores."""
    base = final_base_model(config)
    test = test_set(config)
    batches = scored_batches(test, base, config.evaluation_batch_size)
    scores: dict[str, Any] = {}
    with progress_bar("evaluating on the test split", len(test) * (1 + len(finals))) as advance:
        done = 0

        def count(rows: int) -> None:
            nonlocal done
            done += rows
            advance(done)

        scores["base"] = as_json(evaluate(base.model, batches(), on_batch=count))
        for role, pair in finals.items():
            wrapped = PeftModel.from_pretrained(base.model, str(final_folder(revision, pair) / "adapter"))
            try:
                scores[role] = as_json(evaluate(wrapped, batches(), on_batch=count))
            finally:
                remove_adapters(wrapped)
    for role, pair in finals.items():
        overall = {f"test_{key}": value for key, value in scores[role]["overall"].items()}
        tracking.log_values_if_known(read_final(revision, pair)["mlflow_run_id"], overall)
    write_json(evaluation_path(revision), scores)
    return str(evaluation_path(revision))


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Scores as JSON values: overall and by task type."""
    return {
        "overall": _score(evaluation.overall),
        "by_task": {task_type: _score(score) for task_type, score in evaluation.by_task.items()},
    }


def _score(score: Score) -> dict[str, float]:
    return asdict(score) | {"perplexity": score.perplexity}


def evaluation_path(revision: Revision) -> Path:
    """Where the test scores lie."""
    return revision.path("evaluation.json")


def read_evaluation(revision: Revision) -> dict[str, Any]:
    """The stored test scores."""
    scores: dict[str, Any] = read_json(evaluation_path(revision))
    return scores
