"""Where the search for a baseline's learning rate begins, when it widens, and what its short runs come down to."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mars_core.ranks import RankPair
from mars_core.rates import LearningRates, one_rate
from mars_core.training.recipe import Recipe
from tasks.final import rate_search
from tasks.final.rate_search import (
    NoRateHeld,
    RateSearch,
    ShortRun,
    conclude,
    first_rates,
    search_path,
    start_rate,
    tuned_baseline,
    wider_rate,
)
from tasks.settings.baselines import read_baseline
from tasks.settings.calibration import CalibrationConfig
from tasks.settings.data import DataConfig
from tasks.settings.recipe import RecipeConfig
from tasks.settings.study import StudyConfig
from tasks.storage.files import write_json
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.rates import DecidedRates, RangeResult, write_rates

STEPS = 256
RECIPE = Recipe(learning_rate=1e-3)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr(rate_search, "short_steps", lambda config: STEPS)
    config = StudyConfig(
        study=str(tmp_path), model="m", data=DataConfig(train="t.json"), recipe=RecipeConfig(learning_rate=1e-3),
        calibration=CalibrationConfig(ranks=(2, 4)),
    )  # fmt: skip
    return Study(config, Revision(tmp_path, 1))


def runs_about(best: float, rates: tuple[float, ...], seeds: tuple[int, ...] = (0,)) -> list[ShortRun]:
    """Losses on a parabola about a best rate, seeds at a distance of their own."""
    return [
        ShortRun(rate, seed, 2.0 + 0.1 * seed + 0.1 * math.log(rate / best) ** 2, 10.0)
        for rate in rates
        for seed in seeds
    ]


def test_the_search_begins_at_the_range_test_else_at_the_recipe_and_of_full_rank_at_a_tenth(study):
    assert start_rate(study, read_baseline("dora-16")) == 1e-3
    assert start_rate(study, read_baseline("full-rank")) == pytest.approx(1e-4)
    assert start_rate(study, read_baseline("learning-rates-1e-5-2e-5")) == 2e-5
    assert first_rates(study, read_baseline("dora-16"), ()) == (2.5e-4, 5e-4, 1e-3, 2e-3)
    assert first_rates(study, read_baseline("dora-16"), (1e-4, 3e-4)) == (1e-4, 3e-4)
    found = RangeResult(((2, 2), (4, 4)), 16, {1e-3: 2.0, 3e-3: 1.9}, 2.8e-3)
    write_rates(study.revision, DecidedRates("plan", found, ()))
    assert start_rate(study, read_baseline("dora-16")) == 2.8e-3
    assert start_rate(study, read_baseline("full-rank")) == pytest.approx(2.8e-4)


def test_the_best_rate_is_the_vertex_of_the_parabola(study):
    runs = runs_about(7e-4, (2.5e-4, 5e-4, 1e-3, 2e-3), seeds=(0, 1))
    found = conclude(study, read_baseline("dora-16"), [], runs)
    assert found.learning_rate == pytest.approx(7e-4, rel=0.05)
    assert (found.baseline, found.start, found.at_edge) == ("dora-16-tuned", 1e-3, False)
    assert found.cost == {"runs": 8, "pair_steps": 8 * STEPS, "seconds": 80.0}
    assert wider_rate(study, runs, 1) is None
    stored = json.loads(json.dumps(found.to_json()))
    assert stored["cost"] == found.cost
    assert RateSearch.from_json(stored) == found


def test_an_optimum_at_the_edge_widens_the_search_two_times_at_most(study):
    rates = (2.5e-4, 5e-4, 1e-3, 2e-3)
    low, high = runs_about(1e-4, rates), runs_about(9e-3, rates)
    assert (wider_rate(study, low, 1), wider_rate(study, high, 2)) == (1.25e-4, 4e-3)
    assert wider_rate(study, low, 3) is None
    found = conclude(study, read_baseline("dora-16"), [], high)
    assert (found.learning_rate, found.at_edge) == (2e-3, True)


def test_a_loss_that_falls_ever_faster_leads_to_the_lowest_that_was_measured(study):
    """Measured: eight steps of a small model, all rates far too low."""
    losses = {2.5e-4: 2.746, 5e-4: 2.661, 1e-3: 2.512, 2e-3: 2.336, 4e-3: 2.156, 8e-3: 1.744}
    runs = [ShortRun(rate, 0, loss, 1.0) for rate, loss in losses.items()]
    found = conclude(study, read_baseline("dora-16"), [], runs)
    assert (found.learning_rate, found.at_edge) == (8e-3, True)


def test_a_rate_at_which_a_seed_diverged_is_left_out(study):
    lost = [ShortRun(2e-3, 0, 0.1, 10.0), ShortRun(2e-3, 1, math.nan, 3.0)]
    runs = [*runs_about(5e-4, (2.5e-4, 5e-4, 1e-3), seeds=(0, 1)), *lost]
    found = conclude(study, read_baseline("rslora-4"), [], runs)
    assert found.learning_rate == pytest.approx(5e-4, rel=0.05)
    assert found.cost["runs"] == 8
    assert RateSearch.from_json(found.to_json()).cost == found.cost
    alone = conclude(study, read_baseline("rslora-4"), [2.5e-4, 2e-3], [*runs_about(5e-4, (2.5e-4,)), *lost])
    assert (alone.learning_rate, alone.start, alone.at_edge) == (2.5e-4, None, True)
    with pytest.raises(NoRateHeld, match=r"every short run diverged, at learning rates 0.002: give lower ones"):
        conclude(study, read_baseline("rslora-4"), [], lost)


def test_a_tuned_baseline_is_a_run_of_its_own(study):
    for name in ("dora-16", "learning-rates-1e-5-2e-5", "uniform-16"):
        found = conclude(study, read_baseline(name), [], runs_about(5e-4, (2.5e-4, 5e-4, 1e-3, 2e-3)))
        write_json(search_path(study.revision, read_baseline(name)), found.to_json())
        tuned = tuned_baseline(study, read_baseline(name))
        assert tuned.name == f"{name}-tuned"
        assert tuned.tuned
        assert tuple(tuned.peak_rates(RECIPE)) == found.learning_rates
        assert tuned.identity != read_baseline(name).identity
        assert tuned.at_rates(LearningRates(*found.learning_rates), RECIPE) == tuned  # as the table is read again


def test_rates_of_modules_keep_their_proportion(study):
    own = read_baseline("learning-rates-1e-6-1e-5").at_rate(3e-5, RECIPE)
    assert own.peak_rates(RECIPE) == (3e-6, 3e-5, 3e-5)
    assert read_baseline("dora-4").at_rate(3e-5, RECIPE).peak_rates(RECIPE) == one_rate(3e-5)


def test_a_pair_at_the_recipes_rate_is_the_run_that_it_has_without_a_search():
    uniform = read_baseline("uniform-16").as_tuned()
    assert uniform.pair == RankPair(16, 16)
    assert (uniform.at_rate(1e-3, RECIPE).slug, uniform.at_rate(2e-4, RECIPE).slug) == (
        "me16-llm16", "me16-llm16-lr2e-4",
    )  # fmt: skip
    assert read_baseline("dora-16").as_tuned().at_rate(2e-4, RECIPE).slug == "dora-16-tuned"
