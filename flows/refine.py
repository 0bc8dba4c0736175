"""`mars refine`: the chosen pair's budget shared out over the layers, trained and tested beside the pair."""

from __future__ import annotations

from functools import partial
from typing import Any

from prefect import flow

from flows.compare import add_to_table, baseline_flow, tuned
from flows.results import JSON_RESULTS
from flows.stages import evaluate_flow, finetune_arms, report_flow
from mars_core.layerwise.coarse import STAGES
from mars_core.ranks import RankPair
from tasks.choice.approval import pair_to_train
from tasks.choice.search import SEARCH, choice_path
from tasks.final.arm import Arm
from tasks.final.compare import check_baselines, training_stage
from tasks.final.pairs import best_arm, final_arms
from tasks.refine.probe import measures_of, probe_layers, probe_stage
from tasks.refine.ranks import publish_ranks, ranks_stage, read_shared, refined_baseline, share_out
from tasks.refine.refinement import FIRST_SETTING, Refinement, refinement
from tasks.refine.spectra import measure_spectrum, spectrum_stage
from tasks.running.kept import kept_open
from tasks.running.progress import show_message
from tasks.service.timeouts import bounded
from tasks.settings.baselines import Baseline
from tasks.settings.study import StudyConfig
from tasks.storage.location import working_folder
from tasks.study.lock import at_work_on
from tasks.study.opened import Study, open_study
from tasks.study.parent_run import parent_run


@flow(name="mars-refine", flow_run_name="refine by {method} {config.study}", **JSON_RESULTS)
def refine_flow(
    config: StudyConfig,
    method: str,
    ranks: list[int] | None = None,
    modules: list[str] | None = None,
    stages: int = STAGES,
    step: int | None = None,
    setting: str = FIRST_SETTING,
    tune_lr: bool = False,
    rates: list[float] | None = None,
    command: str = "mars refine",
) -> dict[str, Any]:
    """Share a pair's trainable parameters out over its layers, train the result and test it; returns the ranks.

    Args:
        config: The study.
        method: How: hydra, hydra-coarse, uniform, adalora, eva, gradient or fisher.
        ranks: Ranks of vision encoder and LLM whose budget is shared out, by default the chosen pair's.
        modules: Whose ranks are shared out, me or llm; by default both.
        stages: HyDRA's number of stages.
        step: HyDRA's step between the ranks of stages, by default 2, or 1 where a module's rank is too small for 2.
        setting: HyDRA's fine adjustment, setting1 to setting5 of its Table VI.
        tune_lr: Search for the learning rate of the layer-wise ranks first; by default it is the pair's.
        rates: Peak learning rates to try in that search.
        command: How the report says that it was made.
    """
    with kept_open(), at_work_on(working_folder(config.study)):
        study = open_study(config)
        study.pull()
        arm = _arm(study, ranks)
        refined = refinement(study.inputs.partition, arm, method, modules or [], stages, step, setting)
        _probe(study, refined)
        ranks_stage(refined).run(study, partial(_share_out, study, refined))
        baseline = refined_baseline(study, refined)
        check_baselines(study.inputs, [baseline])
        if choice_path(study.revision).is_file():
            finetune_arms(study)
            evaluate_flow(config)
        own = tuned(config, rates or [], baseline) if tune_lr else baseline
        baseline_flow(config, own)
        _measure_spectra(study, own)
        if choice_path(study.revision).is_file():
            add_to_table(study, [own])
            report_flow(config, command)
    return read_shared(study.revision, refined).to_json()


def _arm(study: Study, ranks: list[int] | None) -> Arm:
    """The pair whose budget is shared out, at the best rate that is known for it."""
    if ranks is not None:
        return best_arm(study, RankPair(*ranks))
    SEARCH.require(study)
    return best_arm(study, pair_to_train(study.revision))


def _probe(study: Study, refined: Refinement) -> None:
    limit = study.config.timeouts.calibration_pack_hours
    probe = bounded(probe_layers, limit, "timeouts.calibration_pack_hours")

    def work(measure: str) -> None:
        with parent_run(study) as parent:
            probe(study, refined.arm, measure, parent)

    for measure in measures_of(refined.allocator.needs):
        probe_stage(refined.arm, measure).run(study, partial(work, measure))


def _share_out(study: Study, refined: Refinement) -> None:
    share_out(study, refined)
    with parent_run(study) as parent:
        publish_ranks(study, refined, parent)
    shared = read_shared(study.revision, refined)
    for module, own in shared.modules.items():
        show_message(f"refine: {module} uses {own.spent:,} of {own.budget:,} trainable parameters")


def _measure_spectra(study: Study, refined: Baseline) -> None:
    """Of the refined adapter, and of the final runs that it is held against."""
    finals = final_arms(study).values() if choice_path(study.revision).is_file() else ()
    for baseline in [refined, *(arm.baseline for arm in finals)]:
        if training_stage(baseline).is_finished(study):
            spectrum_stage(baseline).run(study, partial(_measure_spectrum, study, baseline))


def _measure_spectrum(study: Study, baseline: Baseline) -> None:
    measure_spectrum(study, baseline)
