"""`choose_ranks` from tables whose truth is known."""

import json

import numpy as np
import pandas as pd
import pytest

import mars_core.search.choose as choosing
from mars_core.search import Choice, MaxTrainableParameters, NoPairLeft, choose_ranks

ASKED = {
    "target_samples": 16_384,
    "trainable_parameters": lambda pair: 80 * pair[0] + 170 * pair[1],
    "reference": (16, 16),
}
TWO, THREE = (8, 16), (8, 16, 64)  # ranks of a calibration; a posterior of 16 pairs takes four times as long as of 9


@pytest.fixture(scope="module")
def fits():
    """Laws and posteriors of the tables that were asked about, by what they depend on."""
    return {}


@pytest.fixture
def choose(fits, monkeypatch):
    """`choose_ranks`; one fit serves all target sizes, margins and rules of a table."""
    calibrate, laws_of = choosing.calibrate, choosing.laws_of

    def kept(key, make):
        if key not in fits:
            fits[key] = make()
        return fits[key]

    def table_of(points):
        return points.table.to_csv(), repr(points.diverged)

    def calibrate_once(points, question):
        asked = (question.ranks_me, question.ranks_llm, question.constraints, question.objective)
        return kept((*table_of(points), repr(asked)), lambda: calibrate(points, question))

    def laws_once(points, *settings):
        return kept((*table_of(points), repr(settings)), lambda: laws_of(points, *settings))

    monkeypatch.setattr(choosing, "calibrate", calibrate_once)
    monkeypatch.setattr(choosing, "laws_of", laws_once)
    return lambda metrics, **settings: choose_ranks(metrics, **{**ASKED, "bootstrap": 20, **settings})


def regret(choice, loss):
    true = {candidate.pair: loss(*candidate.pair, choice.D_target) for candidate in choice.candidates}
    return np.expm1(true[choice.pair] - min(true.values()))


def test_eq_1_with_little_noise(choose, metrics_of, eq1):
    choice = choose(metrics_of(eq1, THREE, THREE, noise=0.002), margin=0.0)
    assert choice.pair == (64, 64)
    assert choice.verdict == "best"
    covered = [c.loss_interval[0] < eq1(*c.pair, 16_384) < c.loss_interval[1] for c in choice.candidates]
    assert np.mean(covered) >= 0.9


def test_regret_is_stated_over_all_pairs(choose, metrics_of, eq1):
    choice = choose(metrics_of(eq1, THREE, THREE, noise=0.01))
    assert len(choice.candidates) == 9
    assert choice.regret == pytest.approx(choice.candidate(choice.pair).expected_regret)
    assert choice.regret <= choice.regret_bound
    assert {rival.name for rival in choice.rivals} == {"best observed", "largest", "uniform"}
    assert sum(candidate.probability_best for candidate in choice.candidates) == pytest.approx(1.0)


def test_an_optimum_inside_is_found_where_one_module_dominates(choose, metrics_of):
    """U-shaped in r_me at ranks a factor 16 apart, strong in r_llm: a monotone law takes (256, 256), 9% worse."""

    def loss(r_me, r_llm, D):
        return 1.0 + 0.02 * np.log(r_me / 16) ** 2 + 0.5 * r_llm**-0.4 * (D / 2048) ** -0.3

    metrics = metrics_of(loss, (1, 16, 256), (1, 16, 256), noise=0.003)
    choice = choose(metrics)
    assert choice.pair[0] == 16
    assert regret(choice, loss) < 0.01


def test_no_effect_with_seeds_takes_a_cheap_pair_at_no_regret(choose, metrics_of):
    choice = choose(metrics_of(lambda a, b, D: 1.0 + (D / 256) ** -0.4, THREE, THREE, noise=0.001, seeds=3))
    assert choice.candidate(choice.pair).trainable_parameters <= 0.5 * max(
        c.trainable_parameters for c in choice.candidates
    )
    assert choice.verdict in ("as good and cheaper", "cannot tell")


def test_two_by_two_with_one_run_each_decides(choose, metrics_of, eq1):
    choice = choose(metrics_of(eq1, TWO, TWO, noise=0.002))
    assert regret(choice, eq1) < 0.01


def test_a_table_without_run_id_is_grouped_by_pair_and_seed(choose, metrics_of, eq1):
    metrics = metrics_of(eq1, TWO, TWO, seeds=2, noise=0.01)
    named, unnamed = choose(metrics), choose(metrics.drop(columns="run_id"))
    assert named.pair == unnamed.pair
    assert named.regret == pytest.approx(unnamed.regret)


def test_order_of_the_rows_does_not_matter(metrics_of, eq1, request):
    """Each with a fit of its own: `choose` would have one for both."""
    metrics = metrics_of(eq1, TWO, TWO, noise=0.002)
    shuffled = choose_ranks(metrics.sample(frac=1.0, random_state=1), **ASKED, bootstrap=20)
    in_order = request.getfixturevalue("choose")(metrics)
    assert in_order.to_json()["candidates"] == shuffled.to_json()["candidates"]


def test_a_far_target_is_warned_of_with_what_a_longer_calibration_costs(choose, metrics_of, eq1):
    metrics = metrics_of(eq1, THREE, THREE, noise=0.01)
    near, far = (choose(metrics, target_samples=size) for size in (16_000, 158_000))
    assert near.warnings == ()
    assert "77 times" in far.warnings[0]
    assert "4 times as many steps" in far.warnings[0]
    widths = [
        np.ptp(choice.candidate((16, 16)).loss_interval) / choice.candidate((16, 16)).loss for choice in (near, far)
    ]
    assert widths[1] > widths[0]


def test_unmeasured_pairs_are_chosen_only_if_ranks_are_named(choose, metrics_of, eq1):
    metrics = metrics_of(eq1, THREE, THREE, noise=0.002)
    lost = metrics[(metrics["r_me"] != 64) | (metrics["r_llm"] != 64)]
    assert (64, 64) not in [c.pair for c in choose(lost).candidates]
    named = choose(lost, ranks_me=THREE, ranks_llm=THREE)
    assert not named.candidate((64, 64)).source.measured


def test_a_diverged_run_takes_its_pair_out(choose, metrics_of, eq1):
    metrics = metrics_of(eq1, THREE, THREE, noise=0.002)
    at = (metrics["r_me"] == 64) & (metrics["r_llm"] == 64) & (metrics["step"] == 256)
    choice = choose(metrics.assign(val_loss=metrics["val_loss"].mask(at)), ranks_me=THREE, ranks_llm=(64,))
    assert choice.pair != (64, 64)
    assert "diverged" in next(d.reason for d in choice.dropped if d.r_me == 64)


def test_constraints_hold_for_both_rules(choose, metrics_of, eq1):
    for rule in ("mars", "paper"):
        metrics = metrics_of(eq1, TWO, TWO, noise=0.002)
        choice = choose(metrics, rule=rule, constraints=[MaxTrainableParameters(3_000)])
        assert 80 * choice.pair[0] + 170 * choice.pair[1] <= 3_000
    with pytest.raises(NoPairLeft, match="relax"):
        choose(metrics, constraints=[MaxTrainableParameters(10)])


def test_the_other_rule_stands_beside(choose, metrics_of, eq1):
    ours, papers = (choose(metrics_of(eq1, THREE, THREE, noise=0.01), rule=rule) for rule in ("mars", "paper"))
    assert ours.other_rule["pair"] == papers.pair
    assert papers.other_rule["pair"] == ours.pair
    assert papers.verdict == "paper"


def test_a_metric_is_minimised_as_a_ratio(choose, metrics_of, eq1):
    """The error falls with the LLM's rank, the loss with the vision rank: each objective takes its own."""
    metrics = metrics_of(lambda a, b, D: 1.0 + a**-0.3 * (D / 256) ** -0.3, THREE, THREE, noise=0.001)
    error = 0.9 * metrics["r_llm"] ** -0.3 * (metrics["unique_samples"] / 256) ** -0.4 + 0.02
    metrics = metrics.assign(val_objective=error)
    limit = [MaxTrainableParameters(80 * 64 + 170 * 16)]
    by_error = choose(metrics, objective="token_error", constraints=[MaxTrainableParameters(80 * 8 + 170 * 64)])
    assert by_error.pair[1] == 64
    assert choose(metrics, constraints=limit).pair[0] == 64
    assert by_error.candidate(by_error.pair).perplexity is None


def test_a_metric_that_reaches_zero_still_ranks(choose, metrics_of, eq1):
    metrics = metrics_of(eq1, THREE, THREE, noise=0.001)
    error = np.maximum(0.0, 0.5 - 0.02 * np.log2(metrics["step"] * metrics["r_llm"]))
    choice = choose(metrics.assign(val_objective=error), objective="token_error")
    assert any("is 0 at" in note for note in choice.diagnostics["notes"]) == bool((error == 0).any())
    assert choice.pair[1] == 64


def test_json_round_trip(choose, metrics_of, eq1):
    choice = choose(metrics_of(eq1, THREE, THREE, noise=0.01))
    assert Choice.from_json(json.loads(json.dumps(choice.to_json()))) == Choice.from_json(choice.to_json())
    assert Choice.from_json(choice.to_json()).pair == choice.pair


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.drop(columns="val_loss"), "missing column"),
        (lambda m: m.iloc[:0], "no rows"),
        (lambda m: pd.concat([m, m]), "repeat a step"),
        (lambda m: m.assign(r_me=0), "rank 0"),
        (lambda m: m.assign(step=0), "must be positive"),
        (lambda m: m.to_dict("records"), "pandas DataFrame"),
    ],
)
def test_mistakes_in_the_table_are_named(choose, metrics_of, eq1, change, says):
    with pytest.raises(ValueError, match=says):
        choose(change(metrics_of(eq1)))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"target_samples": 0}, "target_samples must be positive"),
        ({"margin": 1.0}, "margin must lie"),
        ({"rule": "best"}, "unknown rule"),
        ({"ranks_me": (0,)}, "at least one above 0"),
        ({"ranks_me": (8.7, 16)}, "ranks_me must be whole"),
        ({"ranks_llm": (8, "16")}, "ranks_llm must be whole"),
        ({"ranks_me": 8}, "ranks_me must be a sequence"),
        ({"ranks_me": "8, 16"}, "ranks_me must be a sequence"),
        ({"reference": 16}, "reference must be two"),
        ({"reference": (16, 0)}, "reference must be two"),
        ({"reference": (16, 16, 16)}, "reference must be two"),
        ({"target_samples": float("inf")}, "target_samples must be positive and at most"),
        ({"target_samples": 1e300}, "target_samples must be positive and at most"),
        ({"target_samples": 10**400}, "target_samples must be positive and at most"),
        ({"target_samples": "4096"}, "got '4096'"),
        ({"margin": "1%"}, "margin must lie"),
        ({"margin": float("nan")}, "margin must lie"),
        ({"level": "own", "eps": 1.0}, "eps must lie"),
        ({"level": "mine"}, "unknown level"),
        ({"trainable_parameters": 7}, "trainable_parameters must be"),
    ],
)
def test_mistakes_in_the_settings_are_named(choose, metrics_of, eq1, settings, says):
    with pytest.raises(ValueError, match=says):
        choose(metrics_of(eq1), **settings)
