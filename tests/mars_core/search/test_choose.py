import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mars_core.search import (
    AllowedRanks,
    Choice,
    Diverged,
    Dropped,
    MaxAdapterBytes,
    MaxTrainableParameters,
    NoPairLeft,
    SameParametersAsUniform,
    choose_pair,
)

SMALL = {"gamma": 0.01}


@pytest.fixture
def balanced(law_c):
    """Equal modules: the balance curve is r_me = r_llm, known to about half a step of the grid."""
    return law_c(spread=SMALL, seed=1), law_c(spread=SMALL, seed=2)


def test_chosen_has_the_smallest_expected_regret_on_the_curve(law_p, balanced, setting):
    choice = choose_pair(law_p(spread=0.005), *balanced, **setting)
    assert choice.verdict == "chosen"
    assert choice.decided_by == "balanced candidates"
    assert {c.pair for c in choice.candidates} == {(8, 8), (16, 16), (32, 32), (64, 64)}
    assert choice.pair == min(choice.candidates, key=lambda c: c.expected_regret).pair == (64, 64)
    assert choice.fallback_cause is None
    assert "smallest expected regret" in choice.reason


def test_a_bent_law_picks_an_interior_pair(bent_law_p, balanced, setting):
    """Loss A x^-0.6 + C x in x = rank, both terms over D^0.3: minimum at x = (0.6 A / C)^(1/1.6) = 16.6 for
    A = 3, C = 0.02, so 16 is the best of the grid."""
    choice = choose_pair(bent_law_p(), *balanced, **setting, margin=0.0)
    assert pytest.approx(16.6, abs=0.1) == (0.6 * 3 / 0.02) ** (1 / 1.6)
    assert choice.pair == (16, 16)


def test_both_neighbours_become_candidates(law_p, law_c, setting):
    """k_me = 2^0.3 * k_llm shifts the balance to r_me = 2 r_llm; 1.5 times lies between ranks."""
    choice = choose_pair(law_p(), law_c(k=100 * 1.5**0.3), law_c(), **setting)
    assert {c.pair for c in choice.candidates} == {(8, 8), (16, 8), (16, 16), (32, 16), (32, 32), (64, 32)}
    assert choice.candidate((16, 8)).source.how == "above"
    assert choice.candidate((16, 8)).source.balance_rank == pytest.approx(12.0)
    assert [(d.r_me, d.r_llm) for d in choice.dropped] == [(None, 64)]
    assert "balance rank 96" in choice.dropped[0].reason


def test_the_papers_rule_takes_nearest_and_clamps(law_p, law_c, setting):
    choice = choose_pair(law_p(), law_c(k=100 * 1.6**0.3), law_c(), **setting, rule="paper")
    assert {c.pair for c in choice.candidates} == {(16, 8), (32, 16), (64, 32), (64, 64)}
    assert choice.candidate((64, 64)).source.how == "clamped"
    assert choice.pair == (64, 64)
    assert choice.verdict == "chosen"


def test_indistinguishable_takes_the_cheaper_pair(law_p, balanced, setting):
    """Ranks without effect on the loss, known exactly: everything is within the margin, so the cheapest."""
    choice = choose_pair(law_p(alpha_m=1e-6, alpha_l=1e-6), *balanced, **setting)
    assert choice.verdict == "indistinguishable"
    assert choice.pair == (8, 8)
    assert choice.preferred_over == (64, 64)
    assert "fewer parameters" in choice.reason


def test_overlapping_intervals_alone_do_not_buy_the_cheapest(law_p, balanced, setting):
    """The fitted excess of the cheapest pair is 0.17%, below the margin, but with a noisy exponent its upper bound
    is not."""
    noisy = law_p(alpha_m=0.0, alpha_l=0.005, spread={"alpha_l": 0.01, "E": 0.02})
    choice = choose_pair(noisy, *balanced, **setting)
    best, cheapest = choice.candidate(choice.pair), choice.candidate((8, 8))
    assert np.expm1(cheapest.loss - best.loss) < 0.0025 < cheapest.excess_upper_bound
    assert cheapest.loss_interval[0] < best.loss_interval[1]
    assert choice.pair != (8, 8)


def test_margin_is_relative_excess_perplexity(law_p, balanced, setting):
    law = law_p(alpha_m=0.0, alpha_l=0.02)
    choice = choose_pair(law, *balanced, **setting, margin=0.0)
    losses = [c.loss for c in choice.candidates]
    excess = np.expm1(choice.candidate((32, 32)).loss - min(losses))
    assert choice.candidate((32, 32)).excess_upper_bound == pytest.approx(excess)
    just_above = choose_pair(law, *balanced, **setting, margin=excess * 1.001)
    just_below = choose_pair(law, *balanced, **setting, margin=excess * 0.999)
    assert (just_above.pair, just_above.verdict) == ((32, 32), "indistinguishable")
    assert (just_below.pair, just_below.verdict) == ((64, 64), "chosen")


def test_with_too_few_draws_nothing_is_indistinguishable(law_p, balanced, setting):
    choice = choose_pair(law_p(alpha_m=1e-6, alpha_l=1e-6, n_draws=10), *balanced, **setting)
    assert choice.verdict == "chosen"
    assert choice.candidate(choice.pair).loss_interval is None


def test_uninformative_when_one_candidate_is_left(bent_law_p, law_c, setting):
    """The measured exponents: the curve leaves the grid on both sides of the reference."""
    me, llm = law_c(gamma=-0.06, k=100.0 * 16**0.06), law_c(gamma=-0.24, k=100.0 * 16**0.24)
    choice = choose_pair(bent_law_p(), me, llm, **setting)
    assert choice.verdict == "balance uninformative"
    assert choice.decided_by == "law P over all pairs"
    assert len(choice.candidates) == 16
    assert "leaves 1 of 4 LLM ranks" in choice.reason
    assert {d.r_llm for d in choice.dropped} == {8, 32, 64}


def test_uninformative_when_the_interval_spans_the_ranks(bent_law_p, law_c, setting):
    wide = {"k": 1.0}
    me, llm = law_c(spread=wide, seed=1), law_c(spread=wide, seed=2)
    choice = choose_pair(bent_law_p(), me, llm, **setting)
    assert choice.verdict == "balance uninformative"
    assert "covers all vision ranks from 8 to 64" in choice.reason


CAUSES = {
    "complex": (lambda c: (c(E=1e9), c()), "complex"),
    "not finite": (lambda c: (c(gamma=-1e-6, k=1e3), c()), "not finite"),
    "wrong sign of gamma_me": (lambda c: (c(gamma=0.1), c()), "vision encoder has a wrong-signed exponent: gamma"),
    "wrong sign of gamma_llm": (lambda c: (c(), c(gamma=0.1)), "LLM has a wrong-signed exponent: gamma"),
    "wrong sign of delta": (lambda c: (c(), c(delta=-0.1)), "wrong-signed exponent: delta"),
    "missing": (lambda c: (c(), None), "could not be fitted: too few times"),
}


@pytest.mark.parametrize("case", CAUSES)
def test_fallback_to_law_p_over_all_pairs(case, bent_law_p, law_c, setting):
    build, says = CAUSES[case]
    choice = choose_pair(bent_law_p(), *build(law_c), **setting, missing={"law_c_llm": "too few times"})
    assert choice.verdict == "fallback"
    assert says in choice.fallback_cause
    assert choice.fallback_cause[1:] in choice.reason
    assert choice.decided_by == "law P over all pairs"
    assert len(choice.candidates) == 16
    best = choice.preferred_over or choice.pair
    assert choice.candidate(best).loss == pytest.approx(min(c.loss for c in choice.candidates))


@pytest.mark.parametrize(("code", "severity"), [("too_few_points", "error"), ("no_better_than_trivial", "warning"),
                                                ("wrong_sign", "error")])  # fmt: skip
def test_a_disqualified_law_c_falls_back(code, severity, bent_law_p, law_c, status, setting):
    bad = law_c(statuses=[status(code, f"{code} says why", severity)])
    choice = choose_pair(bent_law_p(), law_c(), bad, **setting)
    assert choice.verdict == "fallback"
    assert f"law C of the LLM: {code} says why" in choice.fallback_cause


@pytest.mark.parametrize("flagged", [False, True])
def test_law_c_is_disqualified_by_the_flag_and_not_by_a_rival_that_remembers_its_runs(
    flagged, law_p, law_c, status, held_out, setting
):
    """The rival's smaller error at ranks it has seen is no objection; the status is."""
    statuses = [status("no_better_than_trivial", "the law adds nothing", "warning")] if flagged else []
    fit = replace(law_c(statuses=statuses), held_out=held_out(0.05, {"steps_per_rank": 0.01}))
    choice = choose_pair(law_p(), law_c(), fit, **setting)
    assert choice.verdict == ("fallback" if flagged else "chosen")


@pytest.mark.parametrize(("ratio", "decided_by"), [(2.9, "balanced candidates"), (3.1, "best observed pair")])
def test_a_clear_loss_to_a_trivial_rival_disqualifies_law_p(
    ratio, decided_by, law_p, balanced, status, held_out, setting
):
    flagged = law_p(statuses=[status("no_better_than_trivial", "the law adds nothing", "warning")])
    fit = replace(flagged, held_out=held_out(0.01 * ratio, {"log_linear": 0.01, "performance_no_rank": 0.02}))
    assert choose_pair(fit, *balanced, **setting).decided_by == decided_by


def test_with_one_llm_rank_its_two_neighbours_are_compared(law_p, law_c, setting):
    choice = choose_pair(law_p(), law_c(k=100 * 1.5**0.3), law_c(), **{**setting, "ranks_llm": (16,)})
    assert choice.verdict == "chosen"
    assert {c.pair for c in choice.candidates} == {(16, 16), (32, 16)}


def test_the_reference_alone_is_no_finding(law_p, law_c, setting):
    """A balance rank near 16 at r_llm = 16 only, as slices give by construction, has two neighbours, but says
    nothing about the balance."""
    me, llm = law_c(gamma=-0.06, k=103.0 * 16**0.06), law_c(gamma=-0.24, k=100.0 * 16**0.24)
    choice = choose_pair(law_p(), me, llm, **setting)
    assert 16 < choice.balance_curve[1].r_me < 32
    assert choice.verdict == "balance uninformative"


def test_a_warning_alone_does_not_disqualify(law_p, law_c, status, setting):
    doubtful = law_c(statuses=[status("floor_collapsed", "no floor", "warning")])
    choice = choose_pair(law_p(), law_c(), doubtful, **setting)
    assert choice.verdict == "chosen"
    assert choice.diagnostics["laws"]["c_llm"]["statuses"][0]["code"] == "floor_collapsed"


@pytest.mark.parametrize("law_c_fits", [True, False])
def test_fallback_to_the_best_observed_pair(law_c_fits, law_p, law_c, setting):
    broken = law_p(beta=-0.1)
    laws_c = (law_c(), law_c()) if law_c_fits else (None, None)
    choice = choose_pair(broken, *laws_c, **setting)
    assert (choice.verdict, choice.decided_by, choice.pair) == ("fallback", "best observed pair", (32, 8))
    assert "beta" in choice.fallback_cause
    assert ("could not be fitted" in choice.fallback_cause) != law_c_fits
    # the loss of (32, 8) at D = 2048 in `setting`
    assert choice.candidates[0].loss == pytest.approx(2.01 + 100 / 2048)


def test_the_best_observed_pair_is_taken_at_the_largest_size_and_over_seeds(setting):
    observed = pd.DataFrame(
        [(8, 8, 512, 1.0), (8, 8, 1024, 3.0), (16, 16, 1024, 1.9), (16, 16, 1024, 2.5), (32, 32, 1024, 2.1)],
        columns=["r_me", "r_llm", "D", "loss"],
    )
    choice = choose_pair(None, None, None, **{**setting, "observed": observed})
    assert choice.pair == (32, 32)


def test_fallback_to_the_reference_pair(setting):
    nothing = setting["observed"].iloc[:0]
    choice = choose_pair(None, None, None, **{**setting, "observed": nothing}, missing={"law_p": "no runs finished"})
    assert (choice.verdict, choice.decided_by, choice.pair) == ("fallback", "reference pair", (16, 16))
    assert "no runs finished" in choice.fallback_cause
    limited = choose_pair(None, None, None, **{**setting, "observed": nothing}, constraints=[AllowedRanks(llm=(64,))])
    assert limited.pair == (16, 64)


def test_some_complex_cases_are_counted_and_the_rest_decides(law_p, law_c, setting):
    """E_me between the LLM's times at rank 32 and 64: only 64 is complex."""
    t = [100 * r**-0.3 * 16384**0.5 for r in (8, 16, 32, 64)]
    me, llm = law_c(E=0.5 * (t[2] + t[3]), k=60), law_c()
    choice = choose_pair(law_p(), me, llm, **setting)
    assert choice.n_undefined == 1
    assert choice.diagnostics["undefined_r_llm"] == [64]
    assert "complex" in next(d.reason for d in choice.dropped if d.r_llm == 64)
    assert choice.verdict in ("chosen", "balance uninformative")


def test_extrapolated_ranks_are_marked(law_p, balanced, setting):
    choice = choose_pair(law_p(), *balanced, **{**setting, "ranks_me": (4, 8, 16, 128), "ranks_llm": (4, 8, 16, 128)})
    assert {c.pair: c.source.extrapolated for c in choice.candidates} == {
        (4, 4): True, (8, 8): False, (16, 16): False, (128, 128): True,
    }  # fmt: skip
    assert choice.diagnostics["D_target_over_largest_observed"] == 8.0


CONSTRAINTS = {
    "parameters": (MaxTrainableParameters(7_000_000), {(8, 8), (16, 16)}),
    "bytes": (MaxAdapterBytes(14_000_000, bytes_per_parameter=2), {(8, 8), (16, 16)}),
    "ranks": (AllowedRanks(me=(8, 32), llm=(8, 32)), {(8, 8), (32, 32)}),
}


@pytest.mark.parametrize("case", CONSTRAINTS)
def test_constraints_narrow_the_candidates(case, law_p, balanced, setting):
    constraint, left = CONSTRAINTS[case]
    choice = choose_pair(law_p(), *balanced, **setting, constraints=[constraint])
    assert {c.pair for c in choice.candidates} == left
    assert choice.pair in left


def test_equal_parameters_with_a_uniform_rank(bent_law_p, balanced, setting):
    constraint = SameParametersAsUniform(16, tolerance=0.25)
    choice = choose_pair(bent_law_p(), *balanced, **setting, constraints=[constraint])
    count = setting["trainable_parameters"]
    assert all(0.75 <= count(c.pair) / count((16, 16)) <= 1.25 for c in choice.candidates)
    assert (16, 16) in {c.pair for c in choice.candidates}


def test_constraints_that_leave_nothing_say_so(law_p, balanced, setting):
    with pytest.raises(NoPairLeft, match=r"the cheapest, \(8, 8\), has 3,200,000 trainable parameters"):
        choose_pair(law_p(), *balanced, **setting, constraints=[MaxTrainableParameters(10)])


def test_constraints_hold_for_the_best_observed_pair(setting):
    choice = choose_pair(None, None, None, **setting, constraints=[AllowedRanks(me=(8,))])
    assert choice.pair == (8, 8)


DIVERGED = Diverged({(64, 64): "seed 0 at step 45"})
REASON = "a calibration run that diverged (seed 0 at step 45)"


def test_a_pair_with_a_diverged_run_is_no_candidate_and_listed_with_its_reason(law_p, law_c, balanced, setting):
    """Law P falls with both ranks, so (64, 64) would be chosen on the curve and over all pairs."""
    assert choose_pair(law_p(spread=0.005), *balanced, **setting).pair == (64, 64)
    on_curve = choose_pair(law_p(spread=0.005), *balanced, **setting, constraints=[DIVERGED])
    over_all = choose_pair(law_p(spread=0.005), None, None, **setting, constraints=[DIVERGED])
    assert [choice.decided_by for choice in (on_curve, over_all)] == ["balanced candidates", "law P over all pairs"]
    for choice in (on_curve, over_all):
        assert (64, 64) not in {candidate.pair for candidate in choice.candidates}
        assert [d for d in choice.dropped if d.r_me == 64] == [Dropped(64, 64, REASON)]


def test_what_other_constraints_exclude_is_listed_too_where_law_p_decides(law_p, setting):
    choice = choose_pair(law_p(), None, None, **setting, constraints=[AllowedRanks(me=(8, 16, 32))])
    assert {(d.r_me, d.r_llm) for d in choice.dropped} == {(64, r_llm) for r_llm in (8, 16, 32, 64)}


def test_a_pair_that_no_run_measured_is_marked(law_p, balanced, setting):
    """Both of its ranks were measured, only not together: within the calibrated ranks, and still a guess."""
    observed = setting["observed"]
    hole = observed[~((observed.r_me == 64) & (observed.r_llm == 64))]
    choice = choose_pair(law_p(spread=0.005), *balanced, **{**setting, "observed": hole})
    assert choice.pair == (64, 64)
    source = choice.candidate((64, 64)).source
    assert (source.extrapolated, source.measured) == (False, False)
    assert all(c.source.measured for c in choice.candidates if c.pair != (64, 64))
    assert choice.reason.endswith("No calibration run has this pair.")
    assert Choice.from_json(json.loads(json.dumps(choice.to_json()))).candidates == choice.candidates


def test_a_law_that_nothing_could_test_is_named_in_the_reason(law_p, law_c, status, setting):
    untested = [status("not_validated", "no rank could be left out", "warning")]
    me, llm = law_c(spread=SMALL, seed=1, statuses=untested), law_c(spread=SMALL, seed=2)
    choice = choose_pair(law_p(spread=0.005), me, llm, **setting)
    assert choice.verdict == "chosen"
    assert choice.reason.endswith("Not validated on held-out points: law C of the vision encoder.")
    assert "not_validated" in [s["code"] for s in choice.diagnostics["laws"]["c_me"]["statuses"]]
    assert "Not validated" not in choose_pair(law_p(beta=-0.1), me, llm, **setting).reason  # no law decided


@pytest.mark.parametrize(("effect", "pair", "says"), [(0.0, (8, 8), "rank has no measurable effect here: law P"),
                                                      (0.03, (64, 64), "do differ")])  # fmt: skip
def test_a_law_p_that_cannot_rank_leaves_the_choice_to_the_measurements(
    effect, pair, says, law_p, balanced, status, setting
):
    """Noise of 0.5% of the loss; the effect is that of a doubling of either rank, six times the noise or none."""
    cannot = [status("differences_not_predicted", "it cannot rank pairs", "error")]
    observed = setting["observed"].drop_duplicates(["r_me", "r_llm", "D"])
    doublings = np.log2(observed.r_me * observed.r_llm / 64)
    error = 0.005 * np.random.default_rng(3).standard_normal(len(observed))
    observed = observed.assign(loss=2.0 * np.exp(error - effect * doublings), seed=0)
    choice = choose_pair(law_p(statuses=cannot), *balanced, **{**setting, "observed": observed})
    assert (choice.pair, choice.verdict, choice.decided_by) == (pair, "fallback", "best observed pair")
    assert says.lower() in choice.reason.lower()
    assert ("no measurable effect" in choice.fallback_cause) == (effect == 0)
    assert len(choice.candidates) == 16
    assert choice.preferred_over != choice.pair


def test_parameters_may_be_a_table(law_p, balanced, setting):
    count = setting["trainable_parameters"]
    table = {(m, n): count((m, n)) for m in setting["ranks_me"] for n in setting["ranks_llm"]}
    as_table = choose_pair(law_p(), *balanced, **{**setting, "trainable_parameters": table})
    assert as_table.pair == choose_pair(law_p(), *balanced, **setting).pair
    with pytest.raises(ValueError, match="no entry for the pair"):
        choose_pair(law_p(), *balanced, **{**setting, "trainable_parameters": {(8, 8): 1}})


def test_json_round_trip(law_p, law_c, setting):
    choices = [
        choose_pair(law_p(spread=0.01), law_c(k=130, spread=SMALL), law_c(), **setting, evidence={"x": float("nan")}),
        choose_pair(None, law_c(E=1e9), law_c(), **setting),
    ]
    for choice in choices:
        text = json.dumps(choice.to_json(), allow_nan=False)
        again = Choice.from_json(json.loads(text))
        assert again.to_json() == choice.to_json()
        assert again.candidates == choice.candidates
        assert again.balance_curve == choice.balance_curve


def test_units_of_parameters_and_loss_offset_do_not_move_the_choice(bent_law_p, balanced, setting):
    base = choose_pair(bent_law_p(), *balanced, **setting)
    count = setting["trainable_parameters"]
    scaled = choose_pair(bent_law_p(), *balanced, **{**setting, "trainable_parameters": lambda pair: 7 * count(pair)})
    assert base.pair == scaled.pair


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ranks_me": (0, 8)}, "ranks_me must be at least one positive rank"),
        ({"ranks_llm": ()}, "ranks_llm"),
        ({"D_target": 0}, "D_target must be positive"),
        ({"margin": 25}, r"margin must lie in \[0, 1\)"),
        ({"rule": "papre"}, "unknown rule"),
        ({"observed": pd.DataFrame({"r_me": [8]})}, "missing column"),
    ],
)
def test_mistakes_are_named(change, says, law_p, balanced, setting):
    with pytest.raises(ValueError, match=says):
        choose_pair(law_p(), *balanced, **{**setting, **change})
