"""What a decision says of itself, on hand-made posteriors and planted laws."""

from functools import partial

import numpy as np
import pytest

from mars_core.search import MaxTrainableParameters, Question, read_points
from mars_core.search.assemble import Scene, our_answer, paper_reason
from mars_core.search.choose import calibrate, choose_with
from mars_core.search.constraints import counter
from mars_core.search.decide import Decision
from mars_core.search.fitted_laws import FittedLaws
from mars_core.search.objective import PERPLEXITY_OBJECTIVE
from mars_core.search.observed import Measured
from mars_core.search.outlook import Outlook
from mars_core.search.paper import PaperPick

SMALL, LARGE = (8, 8), (64, 64)


def count(pair):
    return 80 * pair[0] + 170 * pair[1]


def answer(decision, pairs=(SMALL, LARGE)):
    draws = np.tile([0.001, 0.0][-len(pairs) :], (10, 1))
    outlook = Outlook(pairs, draws, draws, 4096.0, 2048.0)
    known = Measured((8, 64), (8, 64), frozenset(pairs))
    return our_answer(Scene(outlook, None, known, count, PERPLEXITY_OBJECTIVE, (), ()), decision, 0.0025)


def test_a_tied_cheaper_pair_is_not_called_best():
    found = answer(Decision(SMALL, LARGE, "best", 0.9, None))
    assert found.preferred_over == LARGE
    assert "predicted best" not in found.reason
    assert found.reason == (
        "(r_me, r_llm) = (8, 8) is cheaper than (64, 64), the best guess, and is expected within half "
        "the margin of it; nothing is promised: its expected regret over all 2 pairs is 0.10% of perplexity, at most "
        "0.10% (95%)."
    )


def test_a_tied_cheaper_pair_is_not_called_the_best_guess():
    found = answer(Decision(SMALL, LARGE, "cannot tell", 0.5, 4))
    assert found.preferred_over == LARGE
    assert found.reason.startswith(
        "These runs cannot tell the best pairs apart (calibrating each pair with about 4 seeds"
    )
    assert "(8, 8) is cheaper than (64, 64), the best guess" in found.reason


@pytest.mark.parametrize(("verdict", "says"), [("best", "is predicted best"), ("cannot tell", "is the best guess")])
def test_the_best_guess_itself_is_called_so(verdict, says):
    found = answer(Decision(LARGE, LARGE, verdict, 0.9, None))
    assert found.preferred_over is None
    assert f"(64, 64) {says}: its expected regret" in found.reason


def test_a_single_pair_is_the_only_one():
    found = answer(Decision(SMALL, SMALL, "best", 1.0, None), (SMALL,))
    assert found.reason == "(r_me, r_llm) = (8, 8) is the only pair that may be chosen."


def test_algorithm_1_lists_what_it_dropped():
    pick = PaperPick(SMALL, ((SMALL, "nearest", None, 1.0),), None, (LARGE,))
    reason = paper_reason(pick, "performance", {LARGE: "too many parameters"})
    assert "is the only pair on the balance curve that may be chosen" in reason
    assert reason.endswith("Dropped from the balance curve: (64, 64) has too many parameters.")


@pytest.fixture(scope="module")
def posterior():
    """Of one table for all questions: it depends on neither rule nor constraint here."""
    return {}


@pytest.fixture
def choose(posterior, metrics_of, eq1, law_p, law_c):
    """The choice where r_me = r_llm balances, all ranks predict well, and no run has the pair (64, 64)."""
    metrics = metrics_of(eq1, (8, 64), (8, 64), noise=0.01)
    points = read_points(metrics[metrics["r_me"] + metrics["r_llm"] < 128], PERPLEXITY_OBJECTIVE)
    laws = FittedLaws(law_p(), {"me": law_c(), "llm": law_c()}, {})
    asked = partial(Question, 16_384.0, count, SMALL)

    def choice(**settings):
        if "at" not in posterior:
            posterior["at"] = calibrate(points, asked())
        return choose_with(posterior["at"], laws, points, asked(**settings))

    return choice


def test_algorithm_1_needs_no_run_of_its_pair(choose):
    paper = choose(rule="paper")
    assert paper.pair == LARGE
    assert [candidate.pair for candidate in paper.candidates] == [SMALL, LARGE]
    assert not paper.candidate(LARGE).source.measured
    assert paper.dropped == ()
    assert (paper.regret, paper.regret_bound) == (None, None)
    assert "no calibration run has the chosen pair (64, 64), so its regret is not stated" in paper.warnings[0]


def test_our_rule_keeps_to_measured_pairs_beside_it(choose):
    ours, paper = choose(rule="mars"), choose(rule="paper")
    assert ours.pair != LARGE
    assert [(dropped.r_me, dropped.r_llm) for dropped in ours.dropped] == [LARGE]
    assert ours.other_rule["pair"] == LARGE
    assert paper.other_rule["pair"] == ours.pair


def test_a_user_s_constraint_binds_algorithm_1_and_is_named(choose):
    paper = choose(rule="paper", constraints=(MaxTrainableParameters(12_000),))
    assert paper.pair == SMALL
    assert "Dropped from the balance curve: (64, 64) has 16,000 trainable parameters" in paper.reason


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0, -5, None, "12"])
def test_a_count_that_is_no_number_is_refused(number):
    with pytest.raises(ValueError, match=r"trainable_parameters gives .* for the pair \(8, 8\)"):
        counter(lambda pair: number)(SMALL)
