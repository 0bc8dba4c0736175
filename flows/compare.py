"""`mars compare`: baselines trained and tested on the study's own data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prefect import flow

from flows.results import JSON_RESULTS
from flows.stages import evaluate_flow, finetune_arms, finetune_flow, report_flow
from flows.tune_baseline import tune_baseline_flow
from tasks.final.arm import Arm
from tasks.final.compare import (
    check_baselines,
    compare_stage,
    compared_before,
    comparison_path,
    score_baseline,
    score_stage,
    train_baseline,
    training_stage,
    write_comparison,
)
from tasks.final.forgetting import forgetting_stage, measure_baseline
from tasks.final.pairs import final_arms, plain_rates
from tasks.final.rate_search import NoRateHeld, tuned_baseline
from tasks.final.run import run_folder
from tasks.running.kept import kept_open
from tasks.running.progress import show_message
from tasks.service.timeouts import bounded
from tasks.settings.baselines import Baseline, read_baseline
from tasks.settings.study import StudyConfig
from tasks.storage.location import working_folder
from tasks.study.lock import at_work_on
from tasks.study.opened import Study, open_study
from tasks.study.parent_run import parent_run
from tasks.tracking import runs as tracking


@flow(name="mars-compare", flow_run_name="compare {config.short_name}", **JSON_RESULTS)
def compare_flow(
    config: StudyConfig,
    baselines: list[str],
    command: str = "mars compare",
    tune_lr: bool = False,
    rates: list[float] | None = None,
) -> str:
    """Train and test baselines at the chosen pair's budget; returns the path of the table.

    Args:
        config: The study; its search must have run. The chosen pair's final run is made if it is missing.
        baselines: Names of shipped baselines, also with other numbers (uniform-32), or paths of YAML files.
        command: How the report says that it was made.
        tune_lr: Search for the learning rate of each baseline first, by equally many short runs of one length.
        rates: Peak learning rates to try in that search, by default those about where it begins.
    """
    with at_work_on(working_folder(config.study)):
        if not tune_lr:
            return _compare(config, baselines, command, lambda baseline: baseline)
        return _compare(config, baselines, command, partial(tuned, config, rates or []))


def tuned(config: StudyConfig, rates: list[float], baseline: Baseline) -> Baseline:
    """A baseline at a learning rate of its own, which is searched for."""
    tune_baseline_flow(config, baseline, rates)
    return tuned_baseline(open_study(config), baseline)


def _compare(
    config: StudyConfig, baselines: list[str], command: str, trained_as: Callable[[Baseline], Baseline]
) -> str:
    """trained_as: gives a baseline its learning rate."""
    with kept_open():
        study = open_study(config)
        asked = [read_baseline(text) for text in baselines]
        check_baselines(study.inputs, asked)
        finetune_arms(study)
        evaluate_flow(config)
        trained, diverged = [], []
        for baseline in asked:
            try:
                own = trained_as(baseline)
            except NoRateHeld as error:
                show_message(f"compare: {error}")
                diverged.append(str(error))
                continue
            baseline_flow(config, own)
            trained.append(own)
        add_to_table(study, trained)
        report_flow(config, command)
        if diverged:
            raise NoRateHeld("; ".join(diverged))
        return study.address(comparison_path(study.revision))


def add_to_table(study: Study, trained: list[Baseline]) -> None:
    """Put baselines into the table, beside those that it has."""
    study.pull()
    together = [*_still_there(study, trained), *trained]

    def work() -> None:
        with parent_run(study) as parent:
            write_comparison(study, final_arms(study)["chosen"], together, parent)

    compare_stage(together).run(study, work)


@flow(name="mars-baseline", flow_run_name="baseline {baseline.name} {config.short_name}", **JSON_RESULTS)
def baseline_flow(config: StudyConfig, baseline: Baseline) -> str:
    """Train a baseline and test it; returns its folder."""
    study = open_study(config)
    study.pull()  # another machine may have trained it
    if baseline.pair is not None:
        arm = Arm(baseline.pair, baseline.learning_rates)
        finetune_flow(config, *arm.pair, "baseline", plain_rates(study, arm))
    else:
        _train(study, baseline)

    def score() -> None:
        tracking.open_experiment(study.folder)
        bounded(score_baseline, config.timeouts.evaluation_hours, "timeouts.evaluation_hours")(study, baseline)

    score_stage(baseline).run(study, score)
    if config.upstream:
        forgetting_stage(baseline).run(study, partial(_forgetting, study, baseline))
    return study.address(run_folder(study.revision, baseline))


def _forgetting(study: Study, baseline: Baseline) -> None:
    tracking.open_experiment(study.folder)
    limit = study.config.timeouts.evaluation_hours
    bounded(measure_baseline, limit, "timeouts.evaluation_hours")(study, baseline)


def _train(study: Study, baseline: Baseline) -> None:
    limit = study.config.timeouts.final_run_hours

    def work() -> None:
        with parent_run(study) as parent:
            bounded(train_baseline, limit, "timeouts.final_run_hours")(study, baseline, parent)

    training_stage(baseline).run(study, work)


def _still_there(study: Study, asked: list[Baseline]) -> list[Baseline]:
    """Baselines compared earlier whose runs are those of the present settings."""
    names = {baseline.name for baseline in asked}
    return [baseline for baseline in compared_before(study) if baseline.name not in names]
