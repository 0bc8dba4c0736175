"""Algorithm 1 as printed, against a loop written from the paper's lines."""

import numpy as np
import pytest

from mars_core.search.balance import balance_curve
from mars_core.search.paper import algorithm_1

RANKS = (8, 16, 32, 64)
EVERY = [(a, b) for a in RANKS for b in RANKS]
D = 158_000.0


def by_hand(law_p, me, llm):
    """For each r_llm: Eq. 3, the closest rank; then the smallest Eq. 1."""
    k_v, g_v, d_v, E_v = (me.coefficients[s] for s in ("k", "gamma", "delta", "E"))
    k_l, g_l, d_l, E_l = (llm.coefficients[s] for s in ("k", "gamma", "delta", "E"))
    P = law_p.coefficients
    found = []
    for r_llm in RANKS:
        rank = ((k_l * r_llm**g_l * D**d_l + E_l - E_v) / (k_v * D**d_v)) ** (1 / g_v)
        r_me = min(RANKS, key=lambda r: (abs(r - rank), r))
        loss = P["A"] / (r_me ** P["alpha_m"] * r_llm ** P["alpha_l"] * D ** P["beta"]) + P["E"]
        found.append((loss, (r_me, r_llm)))
    return min(found)[1]


@pytest.mark.parametrize("gamma", [-0.2, -0.4])
@pytest.mark.parametrize("k", [60.0, 100.0, 130.0])
@pytest.mark.parametrize("alpha_m", [-0.1, 0.05])
def test_equals_the_papers_loop(law_p, law_c, gamma, k, alpha_m):
    law, me, llm = law_p(alpha_m=alpha_m, alpha_l=0.02), law_c(gamma=gamma, k=k), law_c()
    pick = algorithm_1(law, balance_curve(me, llm, RANKS, D), RANKS, D, (16, 16), EVERY)
    assert pick.pair == by_hand(law, me, llm)
    assert pick.cause is None


def test_the_complex_case_takes_the_default_pair(law_p, law_c):
    curve = balance_curve(law_c(E=1e9), law_c(), RANKS, D)  # the vision encoder's floor is above every LLM time
    pick = algorithm_1(law_p(), curve, RANKS, D, (16, 16), EVERY)
    assert pick.pair == (16, 16)
    assert "complex" in pick.cause


def test_a_missing_law_takes_the_default_pair_and_says_why(law_p):
    pick = algorithm_1(law_p(), (), RANKS, D, (16, 16), EVERY, "law C: too few points")
    assert (pick.pair, pick.cause) == ((16, 16), "law C: too few points")


def test_pairs_that_may_not_be_trained_are_no_candidates(law_p, law_c):
    curve = balance_curve(law_c(), law_c(), RANKS, D)  # r_me = r_llm
    free = algorithm_1(law_p(), curve, RANKS, D, (16, 16), EVERY)
    bound = algorithm_1(law_p(), curve, RANKS, D, (16, 16), [pair for pair in EVERY if pair != free.pair])
    assert free.pair == (64, 64)
    assert bound.pair == (32, 32)
    assert (free.dropped, bound.dropped) == ((), ((64, 64),))


def test_no_margin_no_flag_changes_it(law_p, law_c, status):
    """A law that is flagged decides all the same: the paper tests none."""
    flagged = status("no_better_than_trivial", "adds nothing", "error")
    me = law_c(gamma=-0.3, statuses=[flagged])
    pick = algorithm_1(law_p(statuses=[flagged]), balance_curve(me, law_c(), RANKS, D), RANKS, D, (16, 16), EVERY)
    assert pick.pair == (64, 64)
    assert np.isfinite(pick.candidates[0][3])
