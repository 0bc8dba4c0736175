"""Score the base model and the final adapters on the test split."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core.evaluation.generation.accuracy import Accuracies
from mars_core.evaluation.scores import Evaluation, Score, evaluate
from mars_core.metrics.identity import content_hash
from mars_core.models.lora import remove_adapters
from mars_core.records import Record
from tasks.choice.search import choice_path
from tasks.final.answers import answers_path, asked_questions, generate_answers
from tasks.final.arm import Arm
from tasks.final.pair import final_folder, finetune_stage
from tasks.final.pairs import final_arms, untrained_arms
from tasks.final.record import read_final
from tasks.inputs.data import scored_batches
from tasks.running.memory import EVALUATION, out_of_memory
from tasks.running.progress import progress_bar
from tasks.running.retrying import IO_RETRIES
from tasks.storage.files import read_json, write_json
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.stage import Stage
from tasks.tracking import runs as tracking


@task(name="evaluate-on-test", cache_policy=NO_CACHE, persist_result=False, **IO_RETRIES)
@out_of_memory("the evaluation", EVALUATION)
def evaluate_finals(study: Study, finals: Mapping[str, Arm]) -> str:
    """Score the base model and each final adapter, by role, on the test split; returns the path of the scores."""
    base = study.inputs.final_base_model
    test = study.inputs.test_set()
    batches = scored_batches(test, base, study.config.evaluation_batch_size)
    scores: dict[str, ModelScores] = {}
    with progress_bar("evaluating on the test split", len(test) * (1 + len(finals))) as advance:
        done = 0

        def count(rows: int) -> None:
            nonlocal done
            done += rows
            advance(done)

        scores["base"] = scores_of(evaluate(base.model, batches(), on_batch=count))
        for role, arm in finals.items():
            with _adapted(base.model, final_folder(study.revision, arm) / "adapter") as wrapped:
                scores[role] = scores_of(evaluate(wrapped, batches(), on_batch=count))
    scores = _with_generated(study, finals, scores)
    for role, arm in finals.items():
        overall = {f"test_{key}": value for key, value in scores[role].overall.to_json().items() if value is not None}
        tracked = read_final(study.revision, arm).mlflow_run_id
        tracking.log_values_if_known(tracked, overall | generated_values(scores[role]))
        tracking.log_file_if_known(tracked, answers_path(study.revision, role), "answers")
    write_json(evaluation_path(study.revision), {role: found.to_json() for role, found in scores.items()})
    return str(evaluation_path(study.revision))


def _with_generated(
    study: Study, finals: Mapping[str, Arm], scores: Mapping[str, ModelScores]
) -> dict[str, ModelScores]:
    """Each model's scores with the accuracies of its generated answers."""
    base, asked = study.inputs.final_base_model, asked_questions(study.inputs)
    found = {"base": generate_answers(study, base, base.model, "base", None, asked)}
    for role, arm in finals.items():
        adapter = final_folder(study.revision, arm) / "adapter"
        with _adapted(base.model, adapter) as wrapped:
            found[role] = generate_answers(study, base, wrapped, role, adapter, asked)
    return {role: replace(one, generated=found[role]) for role, one in scores.items()}


@contextmanager
def _adapted(model: Any, adapter: Path) -> Iterator[Any]:
    wrapped = PeftModel.from_pretrained(model, str(adapter))
    try:
        yield wrapped
    finally:
        remove_adapters(wrapped)


def generated_values(scores: ModelScores) -> dict[str, float]:
    """Accuracies of generated answers by the names that MLflow shows them under."""
    found = scores.generated
    if found is None:
        return {}
    single = {name: getattr(found, name) for name in ("overall", "with_image", "multiple_choice")}
    grouped = {
        f"{kind}/{name}": accuracy
        for kind, group in (("by_task", found.by_task), ("scienceqa", found.scienceqa))
        for name, accuracy in group.items()
    }
    return {f"test_generated_{metric_name(name)}": one.accuracy for name, one in (single | grouped).items() if one}


def metric_name(name: str) -> str:
    """A name in the characters that MLflow allows."""
    return re.sub(r"[^\w./ -]", "_", name)


@dataclass(frozen=True)
class ModelScores(Record):
    """Scores of a model on the test split; generated: of its generated answers, None where nothing was asked."""

    overall: Score
    by_task: Mapping[str, Score]
    generated: Accuracies | None = None


def scores_of(evaluation: Evaluation) -> ModelScores:
    """Test scores before any answer was generated."""
    return ModelScores(evaluation.overall, evaluation.by_task)


def _inputs(study: Study, finals_hash: str) -> str:
    settings = study.config.evaluation.model_dump(mode="json")
    return content_hash([sorted(final_arms(study)), settings, finals_hash])


def _outputs(study: Study) -> list[Path]:
    """Those of generated answers are only there where answers were short enough."""
    roles = ("base", *final_arms(study))
    return [evaluation_path(study.revision), *(answers_path(study.revision, role) for role in roles)]


EVALUATE = Stage(
    "evaluate",
    reads=lambda study: [finetune_stage(arm) for arm in final_arms(study).values()],
    inputs=_inputs,
    outputs=_outputs,
)


def is_evaluated(study: Study) -> bool:
    """Whether the stored test scores are those of the present final runs."""
    if not choice_path(study.revision).is_file() or untrained_arms(study):
        return False
    return EVALUATE.is_finished(study)


def evaluation_path(revision: Revision) -> Path:
    """Where the test scores lie."""
    return revision.path("evaluation.json")


def read_evaluation(revision: Revision) -> dict[str, ModelScores]:
    """The stored test scores by role."""
    return {role: ModelScores.from_json(stored) for role, stored in read_json(evaluation_path(revision)).items()}
