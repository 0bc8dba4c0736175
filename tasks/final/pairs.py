"""Which pairs get a final run, at which learning rates, and which of them have one."""

from __future__ import annotations

from collections.abc import Sequence

from mars_core.ranks import RankPair
from mars_core.rates import LearningRates
from tasks.calibration.diverged import divergence
from tasks.calibration.stage import CALIBRATE
from tasks.choice.approval import pair_to_train
from tasks.choice.search import choice_path, read_choice
from tasks.final.arm import Arm
from tasks.final.pair import finetune_stage
from tasks.study.opened import Study

UNIFORM, UNIFORM_TUNED = "uniform", "uniform-tuned-rate"


def final_arms(study: Study) -> dict[str, Arm]:
    """The final runs by role: the chosen pair (or what a person put in its place), and the uniform default.

    Where the calibration searched for learning rates, the chosen pair has its best one, and the uniform default is
    trained twice: as a user would train it, and at its own best rate, so that ranks are compared with ranks.
    """
    chosen = best_arm(study, pair_to_train(study.revision))
    if not study.config.final.compare_uniform:
        return {"chosen": chosen}
    default = study.config.calibration.reference
    arms = {"chosen": chosen, UNIFORM: Arm(default), UNIFORM_TUNED: best_arm(study, default)}
    return {role: arm for number, (role, arm) in enumerate(arms.items()) if arm not in list(arms.values())[:number]}


def best_arm(study: Study, pair: RankPair) -> Arm:
    """A pair at the best rates that the choice knows for it, the chosen pair's where it knows none; the recipe's where
    no rates were searched for."""
    rates = read_choice(study.revision).rates if choice_path(study.revision).is_file() else None
    if rates is None:
        return Arm(pair, _only_rates(study, pair))
    return arm_at(study, pair, rates.of_pair(pair) or rates.learning_rates)


def _only_rates(study: Study, pair: RankPair) -> LearningRates | None:
    """Rates of a pair where several were searched and all but one diverged; None for the recipe's."""
    if study.config.calibration.rates is None or not CALIBRATE.is_finished(study):
        return None
    left_out = divergence(study).left_out
    held = [run for run in study.plan.runs if run not in left_out]
    own = {run.learning_rates for run in held if run.pair == pair} or {run.learning_rates for run in held}
    if len(own) > 1:
        raise ValueError(
            f"{pair} was calibrated at {len(own)} learning rates and nothing has chosen one yet: run `mars search` "
            "first, or give the rates"
        )
    return next(iter(own), None)


def arm_at(study: Study, pair: RankPair, rates: LearningRates) -> Arm:
    """A pair at these rates."""
    usual = study.config.recipe.as_recipe().learning_rates.of_pair(pair)
    own = rates.of_pair(pair)
    return Arm(pair, None if own == usual else own)


def asked_arm(study: Study, r_me: int, r_llm: int, rates: Sequence[float] | None) -> Arm:
    """The arm that plain values name, as flows are given them.

    rates: peak rates of vision encoder, projector and LLM, None for the best that are known for the pair.
    """
    pair = RankPair(r_me, r_llm)
    return best_arm(study, pair) if rates is None else arm_at(study, pair, LearningRates(*rates))


def plain_rates(study: Study, arm: Arm) -> list[float]:
    """The rates of an arm as plain values that name it again."""
    return list(arm.baseline.recipe(study.config.recipe.as_recipe()).learning_rates)


def trained_arms(study: Study) -> dict[str, Arm]:
    """Those of `final_arms` whose final run has finished."""
    if not choice_path(study.revision).is_file():
        return {}
    return {role: arm for role, arm in final_arms(study).items() if finetune_stage(arm).is_finished(study)}


def untrained_arms(study: Study) -> dict[str, Arm]:
    """Those of `final_arms` whose final run has not finished."""
    return {role: arm for role, arm in final_arms(study).items() if not finetune_stage(arm).is_finished(study)}
