"""Baselines on a study's own data: each trained at the final run's budget, tested on the test split, put in a table.

STUDY/revisions/001/final/NAME/       adapter/ or model/, training.json, test.json, answers.parquet (the generated ones)
                                      of each baseline; one that is nothing but a rank pair lies beside the chosen one,
                                      as final/me16-llm16; with --tune-lr NAME ends in -tuned (tasks.final.rate_search)
STUDY/revisions/001/comparison.json   the table: base model, chosen pair, every baseline asked for so far
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from mars_core.evaluation.scores import evaluate
from mars_core.metrics.identity import content_hash
from mars_core.rates import LearningRates
from mars_core.records import Record
from mars_core.training.recipe import Recipe
from tasks.calibration.stored import calibration_cost
from tasks.final.answers import asked_questions, write_answers
from tasks.final.arm import Arm
from tasks.final.evaluate import EVALUATE, ModelScores, evaluation_path, generated_values, read_evaluation, scores_of
from tasks.final.pair import finetune_stage
from tasks.final.rate_search import read_search, search_path
from tasks.final.run import Described, run_folder, run_inputs, train_final
from tasks.inputs.data import scored_batches
from tasks.inputs.opened import Inputs
from tasks.running.memory import EVALUATION, out_of_memory
from tasks.running.progress import progress_bar
from tasks.running.retrying import REQUESTS
from tasks.settings.accelerate import acceleration_of
from tasks.settings.baselines import SETTINGS, Baseline
from tasks.storage.files import file_hash, read_json, write_json
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.stage import Stage
from tasks.tracking import runs as tracking


@dataclass(frozen=True)
class SearchCost(Record):
    """What the search for a learning rate took: runs, their optimizer steps together, and their seconds."""

    runs: int
    pair_steps: int
    seconds: float


@dataclass(frozen=True)
class ComparedModel(Record):
    """A row of the table. role: base, chosen or baseline.

    settings, seconds: of what was trained. learning_rates: peak rates of vision encoder, projector and LLM, in a table
    with searches for them; search: what that of the model took, None where there was none.
    """

    name: str
    role: str
    trainable_parameters: int
    test: ModelScores
    settings: Mapping[str, Any] | None = None
    seconds: float | None = None
    learning_rates: tuple[float, ...] | None = None
    search: SearchCost | None = None


def check_baselines(inputs: Inputs, baselines: Sequence[Baseline]) -> None:
    """Refuse what the study's model cannot hold, and names that stand for two things, before anything expensive.

    Raises:
        ValueError: a baseline does not fit.
    """
    partition, acceleration = inputs.partition, acceleration_of(inputs.config)
    for baseline in baselines:
        try:
            baseline.method.check(partition, inputs.config.recipe.as_recipe())
        except ValueError as error:
            raise ValueError(f"baseline {baseline.name}: {error}") from error
        if inputs.config.loading.four_bit and not baseline.method.keeps_base:
            raise ValueError(f"baseline {baseline.name} cannot train 4-bit weights: set loading.four_bit to false")
        if acceleration is not None and acceleration.sharded and not baseline.method.shards:
            raise ValueError(
                f"baseline {baseline.name} cannot be trained with FSDP, which {acceleration.file} asks for: use DDP "
                "(distributed_type MULTI_GPU)"
            )
    names = [baseline.name for baseline in baselines]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"baselines are named twice: {', '.join(sorted(twice))}")


@task(
    name="train-baseline",
    task_run_name="train {baseline.name}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def train_baseline(study: Study, baseline: Baseline, parent: str) -> str:
    """Train a baseline at the full budget and save what it gives; returns the folder.

    Raises:
        RuntimeError: what was saved, loaded again, does not give the same logits.
    """
    settings = baseline.settings.model_dump(mode="json")
    described = Described(
        name=f"baseline {baseline.name}",
        label=f"baseline {baseline.name}",
        role="baseline",
        parameters={"baseline": baseline.settings.described()},
        record={"baseline": baseline.name, "settings": settings},
    )
    train_final(study, baseline, described, parent)
    return str(run_folder(study.revision, baseline))


@task(name="test-baseline", task_run_name="test {baseline.name}", cache_policy=NO_CACHE, persist_result=False)
@out_of_memory("the evaluation", EVALUATION)
def score_baseline(study: Study, baseline: Baseline) -> str:
    """Score a trained baseline on the test split and mark its generated answers; returns the path of its scores."""
    test, folder = study.inputs.test_set(), run_folder(study.revision, baseline)
    base, asked = study.inputs.final_base_model, asked_questions(study.inputs)
    weights, answers = folder / baseline.method.result, baseline_answers(study.revision, baseline)
    loaded = baseline.method.load(base.model, weights)
    batches = scored_batches(test, base, study.config.evaluation_batch_size)
    try:
        with progress_bar(f"testing {baseline.name}", len(test)) as advance:
            scores = scores_of(evaluate(loaded, batches(), on_batch=_sum(advance)))
        generated = write_answers(answers, study.inputs, base, loaded, baseline.name, weights, asked)
        scores = replace(scores, generated=generated)
    finally:
        baseline.method.unwrap(loaded)
    overall = {f"test_{key}": value for key, value in scores.overall.to_json().items() if value is not None}
    tracked = read_json(folder / "training.json")["mlflow_run_id"]
    tracking.log_values_if_known(tracked, overall | generated_values(scores))
    tracking.log_file_if_known(tracked, answers, "answers")
    write_json(folder / "test.json", scores.to_json())
    return str(folder / "test.json")


def _sum(advance: Any) -> Any:
    done = 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        advance(done)

    return count


@task(name="write-comparison", cache_policy=NO_CACHE, persist_result=False, **REQUESTS)
def write_comparison(study: Study, chosen: Arm, baselines: Sequence[Baseline], parent: str) -> str:
    """Put base model, chosen pair and baselines into one table, in the study, MLflow and the Prefect UI."""
    evaluation = read_evaluation(study.revision)
    rows: list[dict[str, Any]] = [
        {"name": "base model", "role": "base", "trainable_parameters": 0, "test": evaluation["base"].to_json()},
        _row(study.revision, chosen.baseline, "MARS", "chosen", evaluation["chosen"]),
    ]
    for baseline in baselines:
        test = ModelScores.from_json(read_json(run_folder(study.revision, baseline) / "test.json"))
        rows.append(_row(study.revision, baseline, baseline.name, "baseline", test))
    if any(baseline.tuned for baseline in baselines):
        _add_searches(study, rows[1:], [chosen.baseline, *baselines])
    write_json(
        comparison_path(study.revision), {"evaluation": file_hash(evaluation_path(study.revision)), "rows": rows}
    )
    models = [ComparedModel.from_json(row) for row in rows]
    values = {f"test_perplexity_{model.name}": model.test.overall.perplexity for model in models[2:]}
    values |= _search_values(models)
    tracking.log_values(parent, values)
    tracking.log_file(parent, comparison_path(study.revision))
    create_table_artifact(
        [dict(_shown(model)) for model in models], key="mars-comparison", description="Baselines on the test set"
    )
    return str(comparison_path(study.revision))


def _row(revision: Revision, baseline: Baseline, name: str, role: str, test: ModelScores) -> dict[str, Any]:
    training = read_json(run_folder(revision, baseline) / "training.json")
    kept = ("trainable_parameters", "steps", "best_step", "best_val_loss", "seconds", "device", "peak_memory_bytes")
    return {
        "name": name,
        "role": role,
        "settings": baseline.settings.model_dump(mode="json"),
        **{key: training[key] for key in kept},
        "test": test.to_json(),
    }


def _add_searches(study: Study, rows: Sequence[dict[str, Any]], trained: Sequence[Baseline]) -> None:
    """Say of each trained row its peak rates and what was spent to find them: of MARS, its calibration."""
    recipe, calibration = study.config.recipe.as_recipe(), calibration_cost(study)
    for row, baseline in zip(rows, trained, strict=True):
        row["learning_rates"] = list(baseline.peak_rates(recipe))
        row["search"] = None
        if row["role"] == "chosen":
            row["search"] = SearchCost(calibration.runs, calibration.steps, calibration.seconds).to_json()
        elif baseline.tuned:
            row["search"] = read_search(study.revision, baseline).cost


def _search_values(rows: Sequence[ComparedModel]) -> dict[str, float]:
    """Peak rates (the LLM's) and costs of the searches as MLflow metrics."""
    values: dict[str, float] = {}
    for row in rows:
        if row.search and row.learning_rates:
            values |= {f"search_{name}_{row.name}": value for name, value in row.search.to_json().items()}
            values[f"learning_rate_{row.name}"] = row.learning_rates[-1]
    return values


def _shown(row: ComparedModel) -> dict[str, str | float | None]:
    generated = row.test.generated.overall if row.test.generated else None
    shown: dict[str, str | float | None] = {
        "name": row.name,
        "trainable parameters": row.trainable_parameters,
        "test perplexity": row.test.overall.perplexity,
        "test accuracy": row.test.overall.accuracy,
        "generated answers": generated.accuracy if generated else None,
        "seconds": row.seconds,
    }
    return shown | _shown_search(row)


def _shown_search(row: ComparedModel) -> dict[str, str | float | None]:
    """Rate and search of a row of a table in which there are searches."""
    if row.learning_rates is None:
        return {}
    return {
        "learning rate": row.learning_rates[-1],
        "search runs": row.search.runs if row.search else None,
        "search seconds": row.search.seconds if row.search else None,
    }


def compared_before(study: Study) -> list[Baseline]:
    """Baselines that the table already has and whose runs are those of the present settings."""
    rows = [row for row in compared_models(study.revision) if row.role == "baseline"]
    known = [_of_row(row, study.config.recipe.as_recipe()) for row in rows]
    return [one for one in known if training_stage(one).is_finished(study) and score_stage(one).is_finished(study)]


def _of_row(row: ComparedModel, recipe: Recipe) -> Baseline:
    baseline = Baseline(row.name, SETTINGS.validate_python(row.settings), tuned=row.search is not None)
    if not (baseline.tuned and row.learning_rates):
        return baseline
    return baseline.at_rates(LearningRates(*row.learning_rates), recipe)


def compared_models(revision: Revision) -> list[ComparedModel]:
    """The table's rows as records, none where nothing was compared."""
    return [ComparedModel.from_json(row) for row in read_comparison(revision)]


def read_comparison(revision: Revision) -> list[dict[str, Any]]:
    """The table's rows, none where nothing was compared."""
    path = comparison_path(revision)
    return list(read_json(path)["rows"]) if path.is_file() else []


def present_comparison(revision: Revision) -> list[dict[str, Any]]:
    """The table's rows, none where the chosen pair was tested anew since."""
    path = comparison_path(revision)
    if not path.is_file() or read_json(path)["evaluation"] != file_hash(evaluation_path(revision)):
        return []
    return read_comparison(revision)


def comparison_path(revision: Revision) -> Path:
    """Where the table lies."""
    return revision.path("comparison.json")


def baseline_answers(revision: Revision, baseline: Baseline) -> Path:
    """Every generated answer of a baseline; there only where answers were short enough."""
    return run_folder(revision, baseline) / "answers.parquet"


def training_stage(baseline: Baseline) -> Stage:
    """A baseline's training as a stage; of a rank pair, its final run."""
    if baseline.pair is not None:
        return finetune_stage(Arm(baseline.pair, baseline.learning_rates))

    def outputs(study: Study) -> list[Path]:
        folder = run_folder(study.revision, baseline)
        return [folder / baseline.method.result, folder / "training.json"]

    return Stage(
        f"finetune-{baseline.slug}", inputs=lambda study, _: run_inputs(study.inputs, baseline), outputs=outputs
    )


def score_stage(baseline: Baseline) -> Stage:
    """A baseline's test as a stage."""

    def inputs(study: Study, trained: str) -> str:
        return content_hash([trained, study.config.recipe.max_tokens, study.config.evaluation.model_dump(mode="json")])

    def outputs(study: Study) -> list[Path]:
        folder = run_folder(study.revision, baseline)
        return [folder / "test.json", baseline_answers(study.revision, baseline)]

    return Stage(f"score-{baseline.slug}", reads=lambda _: (training_stage(baseline),), inputs=inputs, outputs=outputs)


def compare_stage(baselines: Sequence[Baseline]) -> Stage:
    """The table of these baselines as a stage."""
    names = [baseline.name for baseline in baselines]

    def inputs(study: Study, scored: str) -> str:
        searches = [file_hash(search_path(study.revision, baseline)) for baseline in baselines if baseline.tuned]
        return content_hash([names, scored, *searches])

    return Stage(
        "compare",
        reads=lambda _: (EVALUATE, *map(score_stage, baselines)),
        inputs=inputs,
        outputs=lambda study: (comparison_path(study.revision),),
    )
