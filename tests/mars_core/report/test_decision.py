"""A choice in plain sentences."""

import dataclasses

import pytest

from mars_core.report.decision import decision_sentences, verdict_words
from mars_core.search import Candidate, Choice, Rival, Source
from mars_core.search.rates import BestRate, FixedRate, RateAnswer

BEST = Choice(
    pair=(8, 8), verdict="best", reason="Because.", decided_by="posterior", fallback_cause=None, preferred_over=None,
    rule="mars", D_target=4096.0, margin=0.0025,
    candidates=(Candidate((8, 8), 1.2, (1.1, 1.3), 3.3, 0.0, 1000, Source("all pairs")),),
    dropped=(), balance_curve=(), n_undefined=0, diagnostics={}, regret=0.0004, regret_bound=0.0012,
    rivals=(
        Rival("best observed", (8, 16), 1500, 0.001, (-0.002, 0.004)),
        Rival("largest", (64, 64), 8000, -0.0005, (-0.003, 0.002)),
        Rival("uniform", (8, 8), 1000, 0.0, (0.0, 0.0)),
    ),
)  # fmt: skip


def test_rivals_stand_beside_the_pair_with_parameters_and_excess():
    assert decision_sentences(BEST) == (
        "Because.",
        "It is also the uniform pair.",
        "Beside it, the pair measured best in calibration, (8, 16), trains 1,500 parameters (1.5 times as many) and is "
        "predicted to have 0.10% more perplexity (−0.20% to +0.40%); the largest pair, (64, 64), trains 8,000 "
        "parameters (8 times as many) and is predicted to have 0.05% less perplexity (−0.30% to +0.20%).",
    )


def test_one_pair_that_is_two_rivals_is_named_once():
    both = tuple(dataclasses.replace(rival, pair=(64, 64)) for rival in BEST.rivals[:2])
    (_, beside) = decision_sentences(dataclasses.replace(BEST, rivals=both))
    assert beside.startswith("Beside it, the pair measured best in calibration and the largest pair, (64, 64), trains")
    assert beside.count("trains") == 1


def test_what_would_tell_stands_in_the_reason_alone():
    told = decision_sentences(dataclasses.replace(BEST, verdict="cannot tell", seeds_needed=7))
    assert told == decision_sentences(BEST)


def test_best_states_the_margin_that_it_holds_for():
    _, badge, meaning = verdict_words(BEST)
    assert badge == "predicted best"
    assert "within the larger of the margin and 0.25% with at least 80% probability" in meaning


@pytest.mark.parametrize("verdict", ["best", "cannot tell"])
def test_a_tied_cheaper_pair_is_not_called_best(verdict):
    tied = dataclasses.replace(BEST, verdict=verdict, preferred_over=(8, 16))
    _, badge, meaning = verdict_words(tied)
    assert "best" not in badge
    assert "cheaper than the best guess and expected within half the margin of it" in meaning


def test_a_cheaper_pair_of_before_keeps_its_words():
    _, badge, _ = verdict_words(dataclasses.replace(BEST, verdict="indistinguishable", preferred_over=(8, 16)))
    assert badge == "cheapest of equals"


def test_algorithm_1_is_given_the_posterior_s_regret():
    paper = dataclasses.replace(BEST, verdict="paper", decided_by="Algorithm 1")
    said = decision_sentences(paper)
    assert said[1] == "Its expected regret over all pairs is 0.04% of perplexity, at most 0.12% (95%)."


def test_of_a_choice_of_before_there_is_the_reason_alone():
    old = dataclasses.replace(BEST, verdict="chosen", decided_by="balanced candidates", regret=None, rivals=())
    assert decision_sentences(old) == ("Because.",)


FIXED = FixedRate(
    rates=(1e-5, 1e-5), pair=(64, 64), excess=0.3, default=(16, 16), rate_gain=0.4, rank_gain=0.12
)  # fmt: skip


def rated(fixed=FIXED, axes=("all",)):
    best = tuple(BestRate((8, 8), axis, 2.04e-4, (1e-4, 4e-4)) for axis in axes)
    return dataclasses.replace(BEST, rates=RateAnswer(best, best, {}, {}, fixed=fixed))


def test_the_learning_rate_is_named_with_what_both_decisions_gain():
    assert decision_sentences(rated())[1:4] == (
        "Train it at a peak learning rate of 2e-4 (95% interval 1e-4 to 4e-4).",
        "At your learning rate of 1e-5 the best pair is (64, 64), with 30.00% more perplexity than this choice.",
        "For the default pair (16, 16) the best rate alone gains 40.00%, and the best pair at your rate 12.00%: the "
        "learning rate was the limit.",
    )


def test_ranks_that_gain_more_than_the_rate_are_said_to():
    ranks = dataclasses.replace(FIXED, rate_gain=0.01, rates=(1e-5, 2e-5), pair=(16, 16))
    said = " ".join(decision_sentences(rated(ranks)))
    assert "1e-5 (vision encoder) and 2e-5 (LLM) the default pair (16, 16) itself is best" in said
    assert "the ranks gain at least as much as the rate" in said


def test_rates_of_two_modules_are_told_apart():
    said = decision_sentences(rated(None, ("me", "llm")))[1]
    assert "2e-4 for the vision encoder (95%" in said
    assert "2e-4 for the LLM (95%" in said


def test_a_rate_that_no_run_had_is_judged_by_the_nearest_one_that_was_tried():
    outside = dataclasses.replace(FIXED, at_least=True)
    said = " ".join(decision_sentences(rated(outside)))
    assert "with at least 30.00% more perplexity" in said
    assert "the best rate alone gains at least 40.00%" in said
    assert "the learning rate was the limit" in said
    unknown = " ".join(decision_sentences(rated(dataclasses.replace(outside, rate_gain=0.01))))
    assert "not known, since no run had that rate" in unknown


def test_a_default_pair_that_was_not_compared_is_left_out():
    said = decision_sentences(rated(dataclasses.replace(FIXED, default=None, rate_gain=0.0, rank_gain=0.0)))
    assert not any("default pair" in sentence for sentence in said)
