"""How often each pair is chosen when the calibration is repeated: over its seeds, or over bootstrap draws."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mars_core.fitting import LawFit
from mars_core.laws import Law, get_law
from mars_core.search.choice import Choice, Pair

Over = Literal["seeds", "bootstrap draws"]
ChooseFromFits = Callable[[LawFit | None, LawFit | None, LawFit | None], Choice]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Stability:
    """Shares of repeated choices that took a pair or came to a verdict.

    `over`: what each choice was made from: one seed's runs, or one bootstrap draw of the laws.
    """

    over: Over
    n_choices: int
    pairs: Mapping[Pair, float]
    verdicts: Mapping[str, float]

    @property
    def agreement(self) -> float:
        """Share of the pair chosen most often."""
        return max(self.pairs.values())

    def to_json(self) -> dict[str, Any]:
        """JSON-safe form, most frequent first."""
        return {
            "over": self.over,
            "n_choices": self.n_choices,
            "pairs": [{"pair": list(pair), "share": share} for pair, share in self.pairs.items()],
            "verdicts": dict(self.verdicts),
        }


def stability_of(choices: Iterable[Choice], over: Over = "seeds") -> Stability:
    """Tally repeated choices, most frequent first."""
    chosen = list(choices)
    if not chosen:
        raise ValueError("no choices to tally: choose once per calibration seed and pass the choices.")
    pairs = Counter(choice.pair for choice in chosen)
    verdicts = Counter(str(choice.verdict) for choice in chosen)
    n = len(chosen)
    return Stability(
        over,
        n,
        {pair: count / n for pair, count in pairs.most_common()},
        {verdict: count / n for verdict, count in verdicts.most_common()},
    )


def stability_over_seeds(metrics: pd.DataFrame, choose: Callable[[pd.DataFrame], Choice]) -> Stability:
    """Choose from each calibration seed's runs alone.

    Args:
        metrics: checkpoint metrics of at least two seeds (column `seed`).
        choose: fits the laws to a part of the metrics and chooses.
    """
    seeds = sorted(metrics["seed"].unique())
    if len(seeds) < 2:
        raise ValueError(
            f"stability over seeds needs at least 2 calibration seeds, got {len(seeds)}: "
            "calibrate more seeds, or use stability_over_draws."
        )
    return stability_of((choose(metrics[metrics["seed"] == seed]) for seed in seeds), "seeds")


def stability_over_draws(
    law_p: LawFit | None,
    law_c_me: LawFit | None,
    law_c_llm: LawFit | None,
    choose: ChooseFromFits,
    n_draws: int = 100,
) -> Stability:
    """Choose as if each bootstrap draw of the laws were the fit: what single-seed calibrations can tell.

    The whole rule is repeated, margin and intervals included: a draw gets the spread of the fit, moved to lie around
    the draw. It is a bootstrap of the bootstrap without its refits, exact where the spread is the same everywhere.
    Statuses stay those of the fit, and so does what they disqualify.

    Args:
        law_p: fitted law P, or None.
        law_c_me: fitted law C of the vision encoder, or None.
        law_c_llm: fitted law C of the LLM, or None.
        choose: `choose_pair` with all but the fits bound (functools.partial).
        n_draws: how many draws, at most as many as the fits have.
    """
    fits = (law_p, law_c_me, law_c_llm)
    available = min((len(fit.draws) for fit in fits if fit is not None), default=0)
    if available == 0:
        raise ValueError("stability over draws needs fits with bootstrap draws, got none: fit with n_bootstrap > 0.")
    choices = (choose(*(_at_draw(fit, b) for fit in fits)) for b in range(min(n_draws, available)))
    return stability_of(choices, "bootstrap draws")


def _at_draw(fit: LawFit | None, b: int) -> LawFit | None:
    """The fit as if draw b were its optimum, with the draws moved along."""
    if fit is None:
        return None
    law = get_law(fit.law)
    coefficients = dict(zip(law.symbols, fit.draws[b].tolist(), strict=True))
    return replace(fit, coefficients=coefficients, draws=_around(law, fit.draws, fit.theta, fit.draws[b]))


def _around(law: Law, draws: Floats, centre: Floats, other: Floats) -> Floats:
    """Draws moved from one centre to another: scales by a factor, exponents and floors by a difference.

    So the leading term moves by a factor of its own at any ranks and size. Floors, and terms that some draws do not
    have, stay within the draws' range: a factor between nothing and something knows no bounds.
    """
    moved = draws + (other - centre)
    scales = [law.index(symbol) for symbol in law.scales if symbol != law.floor]
    moved[:, scales] = draws[:, scales] * (other[scales] / centre[scales])
    bounded = [law.index(symbol) for symbol in law.scales[1:]]
    moved[:, bounded] = np.clip(moved[:, bounded], draws[:, bounded].min(axis=0), draws[:, bounded].max(axis=0))
    return moved
