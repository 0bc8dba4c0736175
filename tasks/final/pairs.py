"""Which pairs get a final run, and which of them have one."""

from __future__ import annotations

from mars_core.ranks import RankPair
from tasks.choice.approval import pair_to_train
from tasks.choice.search import choice_path
from tasks.final.pair import finetune_stage
from tasks.study.opened import Study


def final_pairs(study: Study) -> dict[str, RankPair]:
    """Pairs of the final runs by role: the chosen one (or what a person put in its place), and the uniform default."""
    chosen = pair_to_train(study.revision)
    uniform = RankPair(study.config.calibration.reference_rank, study.config.calibration.reference_rank)
    if not study.config.final.compare_uniform or uniform == chosen:
        return {"chosen": chosen}
    return {"chosen": chosen, "uniform": uniform}


def trained_pairs(study: Study) -> dict[str, RankPair]:
    """Those of `final_pairs` whose final run has finished."""
    if not choice_path(study.revision).is_file():
        return {}
    return {role: pair for role, pair in final_pairs(study).items() if finetune_stage(pair).is_finished(study)}


def untrained_pairs(study: Study) -> dict[str, RankPair]:
    """Those of `final_pairs` whose final run has not finished."""
    return {role: pair for role, pair in final_pairs(study).items() if not finetune_stage(pair).is_finished(study)}
