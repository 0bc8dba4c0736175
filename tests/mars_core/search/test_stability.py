import json
from functools import partial

import numpy as np
import pandas as pd
import pytest

from mars_core.search import choose_pair, stability_of, stability_over_draws, stability_over_seeds


@pytest.fixture
def choose(setting):
    return partial(choose_pair, **setting, margin=0.0)


def test_tallies_pairs_and_verdicts(law_p, bent_law_p, law_c, choose):
    found = stability_of([choose(law, law_c(), law_c()) for law in (law_p(), law_p(), bent_law_p())])
    assert found.pairs == {(64, 64): pytest.approx(2 / 3), (16, 16): pytest.approx(1 / 3)}
    assert list(found.pairs) == [(64, 64), (16, 16)]
    assert found.verdicts == {"chosen": 1.0}
    assert found.agreement == pytest.approx(2 / 3)
    assert json.loads(json.dumps(found.to_json()))["pairs"][0] == {"pair": [64, 64], "share": pytest.approx(2 / 3)}
    with pytest.raises(ValueError, match="no choices"):
        stability_of([])


def test_over_draws_counts_how_often_a_pair_is_best(law_p, law_c, choose):
    """alpha_l of a draw is normal around 0.01 with spread 0.02: on the diagonal the largest pair wins where it is
    positive, Phi(0.5) = 69%, else the smallest."""
    noisy = law_p(alpha_m=0.0, alpha_l=0.01, spread={"alpha_l": 0.02}, n_draws=400)
    exact = law_c(n_draws=400)
    found = stability_over_draws(noisy, exact, exact, choose, n_draws=400)
    positive = float(np.mean(noisy.draws[:, 2] > 0))
    # in a repetition with an exponent next to none, the expected regret may be least in between: 1% of them or less
    assert found.pairs[64, 64] == pytest.approx(positive, abs=0.01)
    assert found.pairs[8, 8] == pytest.approx(1 - positive, abs=0.01)
    # 400 draws: standard error 2.3%
    assert positive == pytest.approx(0.6915, abs=0.08)
    assert found.n_choices == 400


def test_over_draws_repeats_the_margin_too(law_p, law_c, setting):
    """The exponent is known to a tenth: the cheaper pair is within a wide margin in every repetition, as in the choice.

    The smallest predicted loss alone, without the margin, is always that of (64, 64).
    """
    law = law_p(alpha_m=0.0, alpha_l=0.01, spread={"alpha_l": 0.001})
    choose = partial(choose_pair, **setting, margin=0.05)
    exact = law_c(), law_c()
    assert choose(law, *exact).pair == (8, 8)
    found = stability_over_draws(law, *exact, choose)
    assert found.pairs == {(8, 8): 1.0}
    assert found.verdicts == {"indistinguishable": 1.0}
    assert found.to_json()["over"] == "bootstrap draws"


def test_over_draws_gives_each_repetition_the_spread_of_the_fit(law_p, law_c, choose):
    """Seen by the rule: the interval of a repetition is as wide as that of the fit, around its own prediction."""
    law, seen = law_p(spread={"A": 0.05, "alpha_l": 0.01, "E": 0.02}), []

    def watch(*fits):
        seen.append(fits[0])
        return choose(*fits)

    stability_over_draws(law, law_c(), law_c(), watch, n_draws=5)
    at = {"r_me": [16.0], "r_llm": [32.0], "D": [16384.0]}
    width = np.diff(law.predict_interval(at), axis=0).item()
    for b, fit in enumerate(seen):
        assert fit.predict(at) == pytest.approx(law.predict_draws(at)[b])
        # factors of a few percent: the width differs by that much of itself, and by its share of the clipped floor
        assert np.diff(fit.predict_interval(at), axis=0).item() == pytest.approx(width, rel=0.25)


def test_over_draws_works_without_law_c_and_refuses_no_draws(bent_law_p, choose):
    found = stability_over_draws(bent_law_p(), None, None, choose, n_draws=5)
    assert found.verdicts == {"fallback": 1.0}
    with pytest.raises(ValueError, match="needs fits with bootstrap draws"):
        stability_over_draws(None, None, None, choose)


def test_over_seeds_chooses_from_each_seed_alone(law_p, bent_law_p, law_c, choose):
    metrics = pd.DataFrame({"seed": [0, 0, 1, 2], "val_loss": 1.0})
    laws = {0: law_p(), 1: bent_law_p(), 2: bent_law_p()}

    def fit_and_choose(part):
        (seed,) = part.seed.unique()
        return choose(laws[seed], law_c(), law_c())

    assert stability_over_seeds(metrics, fit_and_choose).pairs[(16, 16)] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="at least 2 calibration seeds"):
        stability_over_seeds(metrics[metrics.seed == 0], fit_and_choose)
