"""Records of a study that was made before tasks had rooms and records had types: they open, and none is made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mars_core.convergence import LossLevels
from mars_core.drift import Acceptance, DataSnapshot
from mars_core.metrics.identity import content_hash
from mars_core.search import Choice
from mars_core.search.fitted_laws import FittedLaws
from tasks.nightly.champion import Champion
from tasks.settings.recipe import RecipeConfig

BEFORE = Path(__file__).parent / "made_before"


def stored(name: str) -> dict:
    return json.loads((BEFORE / name).read_text(encoding="utf-8"))


def test_fitted_laws_open_and_are_written_as_they_were():
    laws = FittedLaws.from_json(stored("laws.json"))
    assert laws.performance.law == "performance"
    assert laws.performance.draws.shape == (5, 5)
    again = laws.to_json()
    assert {name: again[name] for name in stored("laws.json")} == stored("laws.json")


def test_the_choice_opens_and_is_written_as_it_was():
    choice = Choice.from_json(stored("choice.json"))
    assert (choice.pair, choice.verdict) == ((2, 4), "best")
    again = choice.to_json()
    assert {name: again[name] for name in stored("choice.json")} == stored("choice.json")
    assert again["rates"] is None  # all runs had one


def test_the_champion_its_acceptance_levels_and_data_open():
    champion = Champion.from_json(stored("standing.json"))
    assert champion.to_json() == stored("standing.json")  # decisions are kept against its hash
    assert Acceptance.from_json(stored("acceptance.json")["decision"]).accepted
    assert LossLevels.from_json(stored("levels.json")["levels"]).to_json() == stored("levels.json")["levels"]
    assert DataSnapshot.from_json(stored("data.json")).to_json() == stored("data.json")


@pytest.mark.parametrize("value", [{"a": 1}, [[1.0], [1.0, 2.0]], "x", 10**400])
def test_laws_with_something_else_for_numbers_are_refused_and_not_a_crash(value):
    """Found by `benchmarks/fuzz.py`."""
    laws = stored("laws.json")
    laws["performance"]["draws"] = value
    with pytest.raises(ValueError, match=r"(?i)draws|array|number|float"):
        FittedLaws.from_json(laws)


@pytest.mark.parametrize("value", [[], [1], 3, "x", None])
def test_a_record_that_is_no_object_is_refused(value):
    with pytest.raises(ValueError, match="expected an object"):
        FittedLaws.from_json(value)


def test_its_recipe_has_the_identity_that_it_had():
    recipe = RecipeConfig(learning_rate=1e-3, max_tokens=512)
    assert recipe.identity() == stored("revision.json")["recipe"]
    assert content_hash(recipe.identity()) == stored("revision.json")["recipe_hash"]
