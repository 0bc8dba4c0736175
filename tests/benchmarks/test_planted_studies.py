"""Planted studies: what is taken as the truth, and how it is scored."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CHEAP = ("best observed", "largest", "uniform", "quadratic", "quadratic 0.25%")
NUMBERS = range(2)


@pytest.fixture
def planted(monkeypatch):
    """Imports a part of the benchmark, as its own folder does."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return lambda name: importlib.import_module(name)


@pytest.fixture
def make_study(planted):
    return planted("planted.study").make_study


@pytest.fixture
def shapes(planted):
    return tuple(planted("planted.shapes").SHAPES)


def test_a_number_always_makes_the_same_study(make_study):
    first, again, other = make_study(7), make_study(7), make_study(9)
    pd.testing.assert_frame_equal(first.metrics, again.metrics)
    assert first.truth(first.pairs[0], 157_712) == again.truth(again.pairs[0], 157_712)
    assert not np.allclose(first.metrics["val_loss"].iloc[:5], other.metrics["val_loss"].iloc[:5])


def test_every_shape_comes_up_in_both_halves(make_study, shapes):
    studies = [make_study(number) for number in range(2 * len(shapes))]
    assert {(study.shape, study.scheduled) for study in studies} == {
        (s, half) for s in shapes for half in (True, False)
    }


def test_every_shape_has_the_spread_that_was_drawn_and_behaves(planted, make_study, shapes):
    behaves = planted("planted.surface").behaves
    for shape in shapes:
        for study in (make_study(number, shape) for number in NUMBERS):
            assert behaves(study.surface)
            spread = study.surface.spread()
            assert spread == 0 if shape == "no effect" else 0.0049 < spread < (0.15 if shape == "rough" else 0.1201)


def test_eq_1_is_eq_1(planted, make_study):
    law = importlib.import_module("mars_core.fitting")
    study = make_study(0, "Eq. 1")
    rows = [(*pair, D, study.truth(pair, D)) for pair in study.pairs for D in (64, 256, 1_024, 4_096, 16_384)]
    fit = law.fit_law("performance", pd.DataFrame(rows, columns=["r_me", "r_llm", "D", "loss"]), n_bootstrap=2)
    X = {"r_me": [study.pairs[-1][0]], "r_llm": [study.pairs[-1][1]], "D": [157_712.0]}
    assert fit.predict(X)[0] == pytest.approx(study.truth(study.pairs[-1], 157_712), rel=1e-3)


def test_the_moving_optimum_moves_down_with_size(make_study):
    moved = [
        _best_vision(study, 64) - _best_vision(study, 204_800) for study in _of_shape(make_study, "moving optimum")
    ]
    assert min(moved) >= 0
    assert max(moved) > 0


def test_at_the_last_checkpoint_both_halves_lie_on_the_surface(planted, make_study):
    schedule = planted("planted.schedule")
    for number in NUMBERS:
        study = make_study(number)
        truth = [study.truth(pair, 2_048) for pair in study.pairs]
        assert schedule.constant_curves(study.surface, study.pairs)[:, -1] == pytest.approx(truth, rel=1e-12)
        gap = schedule.Gap(0.06, 0.2, 0.5)
        assert schedule.scheduled_curves(study.surface, study.pairs, gap)[:, -1] == pytest.approx(truth, rel=1e-12)


def test_before_the_last_checkpoint_a_schedule_lies_above_the_surface(planted, make_study):
    schedule = planted("planted.schedule")
    for number in NUMBERS:
        study = make_study(number)
        scheduled = schedule.scheduled_curves(study.surface, study.pairs, schedule.Gap(0.01, 0.2, 0.5))
        assert (scheduled[:, :-1] > study.surface.losses(study.pairs, schedule.SIZES[:-1])).all()


def test_noise_has_the_sizes_that_it_says(planted):
    noise = planted("planted.noise").Noise(run=0.01, checkpoint=0.005, correlation=0.5, common=0.0, smallest=3.0)
    drawn = noise.sample(np.random.default_rng(0), 4_000, 1)[:, 0]
    assert drawn[:, -1].std() == pytest.approx(np.hypot(0.01, 0.005), rel=0.05)
    assert drawn[:, 0].std() == pytest.approx(np.hypot(0.01, 0.015), rel=0.05)


def test_a_calibration_has_what_a_real_one_has(make_study, shapes):
    for study in map(make_study, range(2 * len(shapes))):
        runs = study.metrics.groupby("run_id")
        assert len(runs) == len(study.pairs) * study.n_seeds
        assert (runs["step"].max() == 256).all()
        assert (study.metrics["unique_samples"] == 8 * study.metrics["step"]).all()
        last = study.metrics.loc[study.metrics["step"] == 256, "lr"]
        assert (last < 1e-6).all() if study.scheduled else (last == 2e-3).all()
        assert study.reference in study.pairs


def test_cheap_rivals_choose_pairs_that_have_runs(planted, make_study, shapes):
    rules, score = planted("planted.rules").RULES, planted("planted.score")
    studies = [make_study(1, shape) for shape in shapes]
    scores = [score.score_choice(study, study.targets[-1], rules[name]) for study in studies for name in CHEAP]
    assert min(s["regret"] for s in scores) == 0
    assert max(s["regret"] for s in scores) < 0.3


@pytest.mark.slow
def test_the_product_chooses_what_its_public_call_chooses(planted, make_study):
    """One fit serves all targets and margins of a study; the choice is that of a fresh `choose_ranks` all the same."""
    from mars_core.search import choose_ranks

    study, product = make_study(14, "additive"), planted("planted.rules").product
    found = [product(study, target, 0.0025, "mars") for target in study.targets[:2]]
    asked = {"trainable_parameters": study.count, "reference": study.reference, "margin": 0.0025}
    fresh = choose_ranks(study.metrics, target_samples=study.targets[1], bootstrap=20, **asked)
    assert found[1].pair == fresh.pair
    assert found[1].regret == fresh.regret
    assert product(study, study.targets[1], 0.0, "paper").rule == "paper"


def test_the_recorded_table_is_narrow(planted, capsys):
    record = json.loads((BENCHMARKS / "results" / "planted_studies.json").read_text(encoding="utf-8"))
    planted("planted.table").print_record(record)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 120


def test_statements_are_held_against_the_truth(planted, make_study):
    score, rule = planted("planted.score"), planted("planted.rules").Rule
    study = make_study(0, "additive")
    true = {pair: study.truth(pair, 16_384) for pair in study.pairs}
    best, worst = min(true, key=true.get), max(true, key=true.get)
    said = [_candidate(best, true[best], (-1, 1)), _candidate(worst, true[worst] + 1, (-1, -0.5))]
    choice = SimpleNamespace(pair=best, verdict="chosen", preferred_over=worst, candidates=said)
    found = score.score_choice(study, 16_384, rule(lambda *_: choice, 0.0025, states=True))
    assert (found["regret"], found["loss_covered"], found["loss_stated"]) == (0, 1, 2)
    assert (found["excess_covered"], found["excess_stated"]) == (0, 1)
    assert found["cheaper_over"] < 0
    summary = score.summarise([{"shape": "additive", "scheduled": False, **found}], states=True)
    assert summary["all"]["all"]["verdicts"]["chosen"]["right"] == 1
    assert summary["shape"]["additive"]["loss_coverage"] == 0.5


def test_what_is_not_stated_is_not_scored(planted, make_study):
    score, rule = planted("planted.score"), planted("planted.rules").Rule
    study = make_study(0, "ratio")
    choice = SimpleNamespace(pair=study.pairs[0])
    found = score.score_choice(study, 2_048, rule(lambda *_: choice, states=True))
    assert "excess_covered" not in found
    summary = score.summarise([{"shape": "ratio", "scheduled": False, **found}], states=True)["all"]["all"]
    assert summary["excess_coverage"] is None


def test_a_pair_whose_runs_diverged_is_no_choice(planted, make_study):
    regret = planted("planted.score").regret
    study = next(s for s in map(make_study, range(60)) if s.surface.grid.diverged)
    assert regret(study, study.surface.grid.diverged[0], 2_048) == 1.0


def test_an_interrupted_run_goes_on_where_it_was(planted, tmp_path, monkeypatch):
    module = planted("planted_studies")
    monkeypatch.setattr(module, "SHAPES", ("additive", "no effect"))
    whole = module.scores_of(["uniform"], 2, 1, tmp_path)["uniform"]
    file = tmp_path / "uniform.jsonl"
    file.write_text(file.read_text()[:-20])
    asked, measured = [], module.score_task
    monkeypatch.setattr(module, "score_task", lambda task: asked.append(task) or measured(task))
    again = [module.scores_of(["uniform"], 2, 1, tmp_path)["uniform"] for _ in range(2)]
    assert asked == [(("uniform",), "no effect", 1)]
    assert [_untimed(scores) for scores in again] == [_untimed(whole)] * 2


def _untimed(scores):
    return [{**score, "seconds": None} for score in scores]


def _best_vision(study, D):
    return min(study.pairs, key=lambda pair: study.truth(pair, D))[0]


def _of_shape(make_study, shape):
    return [make_study(number, shape) for number in range(8)]


def _candidate(pair, loss, excess):
    return SimpleNamespace(
        pair=pair, loss=loss, loss_interval=(loss - 0.01, loss + 0.01), expected_regret=0.0, excess_interval=excess
    )
