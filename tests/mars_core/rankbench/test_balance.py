from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mars_core.rankbench.balance import balance_record
from mars_core.rankbench.truth import Truth

RANKS = (1, 4, 8, 16)


def cell(b: float):
    """Times 10 r_me^0.5 r_llm^0.2 and 20 r_llm^-0.1; loss = prediction + b ln(t_me/t_llm)^2, exactly."""
    rows, losses, predicted = [], {}, {}
    rng = np.random.default_rng(0)
    for r_me in RANKS:
        for r_llm in RANKS:
            t_me, t_llm = 10 * r_me**0.5 * r_llm**0.2, 20 * r_llm**-0.1
            rows.append({"r_me": r_me, "r_llm": r_llm, "rewind_me": t_me, "rewind_llm": t_llm})
            predicted[r_me, r_llm] = 1.0 + 0.1 * rng.normal()
            losses[r_me, r_llm] = predicted[r_me, r_llm] + b * np.log(t_me / t_llm) ** 2
    return pd.DataFrame(rows), Truth(losses, 0.01, 4, None, 512), predicted


def test_the_planted_weight_and_slopes_come_back():
    found = balance_record(*cell(0.03))
    assert found["b"] == pytest.approx(0.03, rel=1e-6)  # no noise: exact up to rounding
    assert found["ratio"] < 1e-6
    assert (found["own_me"], found["other_me"]) == pytest.approx((0.5, 0.2))
    assert (found["own_llm"], found["other_llm"]) == pytest.approx((-0.1, 0.0), abs=1e-9)


def test_balance_that_harms_has_a_negative_weight():
    assert balance_record(*cell(-0.03))["b"] == pytest.approx(-0.03, rel=1e-6)


def test_too_few_timed_pairs_tell_nothing():
    ends, truth, predicted = cell(0.03)
    ends.loc[7:, "rewind_me"] = np.nan
    assert balance_record(ends, truth, predicted) is None
