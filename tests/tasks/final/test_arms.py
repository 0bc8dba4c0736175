"""Which final runs there are, at which learning rates, and where they lie; the choice is written by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mars_core.ranks import RankPair
from mars_core.rates import LearningRates, one_rate
from mars_core.search import Choice
from mars_core.search.rates import BestRate, RateAnswer
from mars_core.training.recipe import Recipe
from tasks.choice.search import choice_path
from tasks.final.arm import Arm
from tasks.final.pair import final_folder, finetune_stage
from tasks.final.pairs import arm_at, asked_arm, final_arms, plain_rates
from tasks.settings.baselines import read_baseline
from tasks.settings.calibration import CalibrationConfig
from tasks.settings.data import DataConfig
from tasks.settings.recipe import RecipeConfig
from tasks.settings.study import StudyConfig
from tasks.storage.files import write_json
from tasks.storage.folder import Revision
from tasks.study.opened import Study

STORED = Path(__file__).parents[1] / "study" / "made_before" / "choice.json"
DEFAULT = RankPair(2, 2)


def best(*rates: tuple[tuple[int, int], float]) -> RateAnswer:
    pairs = tuple(BestRate(pair, "all", rate, (rate / 2, 2 * rate)) for pair, rate in rates)
    return RateAnswer(pairs[:1], pairs, {}, {"all": (1e-4, 1e-2)})


@pytest.fixture
def study_with(tmp_path):
    def make(pair: tuple[int, int], rates: RateAnswer | None) -> Study:
        config = StudyConfig(
            study=str(tmp_path), model="m", data=DataConfig(train="t.json"), recipe=RecipeConfig(learning_rate=1e-3),
            calibration=CalibrationConfig(ranks=(2, 4)),
        )  # fmt: skip
        choice = replace(Choice.from_json(json.loads(STORED.read_text())), pair=pair, rates=rates)
        write_json(choice_path(Revision(tmp_path, 1)), choice.to_json())
        return Study(config, Revision(tmp_path, 1))

    return make


def test_without_a_search_for_rates_all_is_as_it_was(study_with):
    assert final_arms(study_with((2, 4), None)) == {"chosen": Arm(RankPair(2, 4)), "uniform": Arm(DEFAULT)}
    assert final_arms(study_with((2, 2), None)) == {"chosen": Arm(DEFAULT)}
    assert Arm(RankPair(2, 4)).slug == "me2-llm4"


def test_the_default_is_trained_at_the_users_rate_and_at_its_best(study_with):
    study = study_with((2, 4), best(((2, 4), 5.04e-4), ((2, 2), 7e-4)))
    arms = final_arms(study)
    assert arms == {
        "chosen": Arm(RankPair(2, 4), one_rate(5e-4)),  # to two digits
        "uniform": Arm(DEFAULT),
        "uniform-tuned-rate": Arm(DEFAULT, one_rate(7e-4)),
    }
    folders = {final_folder(study.revision, arm) for arm in arms.values()}
    assert {folder.name for folder in folders} == {"me2-llm4-lr5e-4", "me2-llm2", "me2-llm2-lr7e-4"}
    assert len({finetune_stage(arm).name for arm in arms.values()}) == 3


def test_where_the_default_is_chosen_only_the_users_rate_is_compared(study_with):
    arms = final_arms(study_with((2, 2), best(((2, 2), 7e-4), ((2, 4), 5e-4))))
    assert arms == {"chosen": Arm(DEFAULT, one_rate(7e-4)), "uniform": Arm(DEFAULT)}


def test_the_recipes_rate_is_no_rate_of_its_own(study_with):
    study = study_with((2, 4), best(((2, 4), 1.004e-3), ((2, 2), 1e-3)))
    assert final_arms(study) == {"chosen": Arm(RankPair(2, 4)), "uniform": Arm(DEFAULT)}
    assert arm_at(study, RankPair(0, 4), LearningRates(9.0, 1e-3, 1e-3)) == Arm(RankPair(0, 4))


def test_plain_values_name_the_same_arm_again(study_with):
    study = study_with((2, 4), best(((2, 4), 5e-4), ((2, 2), 7e-4)))
    for arm in final_arms(study).values():
        assert asked_arm(study, *arm.pair, plain_rates(study, arm)) == arm
    assert asked_arm(study, 2, 4, None) == Arm(RankPair(2, 4), one_rate(5e-4))
    assert asked_arm(study, 4, 4, None) == Arm(RankPair(4, 4), one_rate(5e-4))  # of an unknown pair, the chosen one's


def test_what_is_trained_has_the_rates(study_with):
    rates = LearningRates(1e-4, 2e-4, 2e-4)
    baseline = Arm(RankPair(2, 4), rates).baseline
    assert baseline.recipe(Recipe()).learning_rates == rates
    assert baseline.pair == (2, 4)
    assert baseline.identity != Arm(RankPair(2, 4)).baseline.identity == {"pair": [2, 4]}
    with pytest.raises(ValueError, match="there is no baseline"):
        read_baseline("me2-llm4-lr5e-4")
