"""What a calibration is said to take, counted by hand: 2 x 2 or 3 x 3 pairs, 8 steps each."""

from __future__ import annotations

import pytest

from tasks.calibration.expected import Axes, PlanPart, describe_expected, expected_plan, parts_in_words
from tasks.inputs.opened import Inputs
from tests.flows.conftest import write_small_study


@pytest.fixture
def described(tmp_path, demo_data):
    config = write_small_study(tmp_path, demo_data)

    def describe(**calibration):
        own = config.model_copy(update={"calibration": config.calibration.model_copy(update=calibration)})
        return describe_expected(own, expected_plan(Inputs(own)))

    return describe


def words_of(described):
    parts = [PlanPart.from_json(part) for part in described["parts"]]
    return parts_in_words(Axes.from_json(described["axes"]), parts)


def test_one_rate_is_one_part(described):
    found = described(seeds=(0, 1))
    assert found["axes"] == {"pairs": 4, "learning_rates": 1, "seeds": 2, "sizes": 1}
    assert found["parts"] == [{"name": "calibration", "runs": 8, "pair_steps": 64, "at_most": False}]
    assert words_of(found) == [
        "axes: 4 pairs x 1 learning rate x 2 seeds",
        "calibration: 8 runs, 64 steps in all",
    ]


def test_a_list_of_rates_multiplies_the_runs(described):
    found = described(learning_rates="0.0003, 0.001, 0.004", ranks=(0, 2, 4))
    assert found["axes"] == {"pairs": 8, "learning_rates": 3, "seeds": 1, "sizes": 1}
    assert found["parts"] == [{"name": "calibration", "runs": 24, "pair_steps": 192, "at_most": False}]
    assert found["runs"] == 24


def test_automatic_rates_are_a_range_test_a_round_what_widens_it_and_what_confirms_it(described):
    """Of 9 pairs the 4 corners and the reference (4, 4) are tried at 4 rates, the other 4 at one."""
    found = described(learning_rates="auto", ranks=(2, 4, 8))
    assert found["axes"] == {"pairs": 9, "learning_rates": 4, "seeds": 1, "sizes": 1}
    assert found["parts"] == [
        {"name": "learning-rate range test", "runs": 16, "pair_steps": 16 * 8, "at_most": False},
        {"name": "calibration round 1", "runs": 24, "pair_steps": 24 * 8, "at_most": False},
        {"name": "calibration rounds 2 to 3", "runs": 18, "pair_steps": 18 * 8, "at_most": True},
        {"name": "further runs of pairs that may be best", "runs": 36, "pair_steps": 36 * 8, "at_most": True},
    ]
    assert words_of(found)[-1] == "further runs of pairs that may be best: at most 36 runs, 288 steps in all"
    without = described(learning_rates="auto", ranks=(2, 4, 8), confirm_runs=0)
    assert without["parts"] == found["parts"][:-1]
