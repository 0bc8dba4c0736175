"""`mars compare`: baselines trained and tested on the study's own data."""

from __future__ import annotations

from prefect import flow

from flows.results import JSON_RESULTS
from flows.stages import evaluate_flow, final_pairs, finetune_flow, parent_run, report_flow, run_stage
from mars_core.metrics.identity import content_hash
from tasks.final.compare import (
    baseline_outputs,
    check_baselines,
    compared_before,
    comparison_path,
    score_baseline,
    score_outputs,
    train_baseline,
    write_comparison,
)
from tasks.final.run import run_folder, run_inputs
from tasks.service.timeouts import bounded
from tasks.settings.baselines import Baseline, read_baseline
from tasks.settings.study import StudyConfig
from tasks.storage.folder import Revision, is_finished, outputs_hash
from tasks.storage.location import address, working_folder
from tasks.study.lock import at_work_on
from tasks.study.revision import open_revision
from tasks.tracking import runs as tracking


@flow(name="mars-compare", flow_run_name="compare {config.study}", **JSON_RESULTS)
def compare_flow(config: StudyConfig, baselines: list[str], command: str = "mars compare") -> str:
    """Train and test baselines at the chosen pair's budget; returns the path of the table.

    Args:
        config: The study; its search must have run. The chosen pair's final run is made if it is missing.
        baselines: Names of shipped baselines, also with other numbers (uniform-32), or paths of YAML files.
        command: How the report says that it was made.
    """
    with at_work_on(working_folder(config.study)):
        return _compare(config, baselines, command)


def _compare(config: StudyConfig, baselines: list[str], command: str) -> str:
    revision = open_revision(config, new=False)
    asked = [read_baseline(text) for text in baselines]
    check_baselines(config, asked)
    finals = final_pairs(config, revision)
    for role, pair in finals.items():
        finetune_flow(config, pair.r_me, pair.r_llm, role)
    evaluate_flow(config)
    for baseline in asked:
        baseline_flow(config, baseline)
    together = [*_still_there(config, revision, asked), *asked]
    stages = ["evaluate", *(score_stage(baseline) for baseline in together)]

    def work() -> None:
        with parent_run(config, revision) as parent:
            write_comparison(config, revision, finals["chosen"], together, parent)

    inputs = content_hash([[baseline.name for baseline in together], outputs_hash(revision, *stages)])
    run_stage(config, revision, "compare", inputs, [comparison_path(revision)], work)
    report_flow(config, command)
    return address(config.study, comparison_path(revision))


@flow(name="mars-baseline", flow_run_name="baseline {baseline.name} {config.study}", **JSON_RESULTS)
def baseline_flow(config: StudyConfig, baseline: Baseline) -> str:
    """Train a baseline and test it; returns its folder."""
    revision = open_revision(config, new=False)
    if baseline.pair is not None:
        finetune_flow(config, baseline.pair.r_me, baseline.pair.r_llm, "baseline")
    else:
        _train(config, revision, baseline)
    settings = [config.recipe.max_tokens, config.evaluation.model_dump(mode="json")]
    scored = content_hash([outputs_hash(revision, training_stage(baseline)), *settings])

    def score() -> None:
        tracking.open_experiment(working_folder(config.study))
        bounded(score_baseline, config.timeouts.evaluation_hours, "timeouts.evaluation_hours")(
            config, revision, baseline
        )

    run_stage(config, revision, score_stage(baseline), scored, score_outputs(revision, baseline), score)
    return address(config.study, run_folder(revision, baseline))


def _train(config: StudyConfig, revision: Revision, baseline: Baseline) -> None:
    def work() -> None:
        with parent_run(config, revision) as parent:
            bounded(train_baseline, config.timeouts.final_run_hours, "timeouts.final_run_hours")(
                config, revision, baseline, parent
            )

    inputs, outputs = run_inputs(config, baseline), baseline_outputs(revision, baseline)
    run_stage(config, revision, training_stage(baseline), inputs, outputs, work)


def training_stage(baseline: Baseline) -> str:
    """Name of the stage that trains a baseline; of a pair, the final run's."""
    return f"finetune-{baseline.slug}"


def score_stage(baseline: Baseline) -> str:
    """Name of the stage that tests a baseline."""
    return f"score-{baseline.slug}"


def _still_there(config: StudyConfig, revision: Revision, asked: list[Baseline]) -> list[Baseline]:
    """Baselines compared earlier whose runs are those of the present settings."""
    names = {baseline.name for baseline in asked}
    return [
        baseline
        for baseline in compared_before(revision)
        if baseline.name not in names
        and is_finished(revision, training_stage(baseline), run_inputs(config, baseline))
        and revision.manifest(score_stage(baseline)).is_file()
    ]
