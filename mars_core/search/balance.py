"""The balance condition t_me = t_llm, solved for the vision rank (Eq. 3, appendix F).

    r_me = ((k_l r_llm^gamma_l D^delta_l + E_llm - E_me) / (k_v D^delta_v))^(1 / gamma_v)

| symbol | meaning | shape |
|---|---|---|
| theta_me, theta_llm | law C's (k, gamma, delta, E) of each module | (4,) or (n_draws, 4) |
| D | target effective dataset size, unique samples | scalar |
| r_llm | LLM rank | scalar |

The bracket can turn negative (the paper's complex case), and the power 1/gamma_v magnifies every error by
1/|gamma_v|; so the whole bootstrap is carried through.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mars_core.fitting import LawFit
from mars_core.laws import get_law

Floats = NDArray[np.float64]

LARGEST_LOG_RANK = 700.0  # exp(700) is still a finite float
INTERVAL = (2.5, 97.5)  # percent


@dataclass(frozen=True)
class BalancePoint:
    """The vision rank that balances one LLM rank.

    `r_me`: fitted balance rank, continuous; None where Eq. 3 has no real, finite solution, and `problem` then
    says why. `interval`: 95% interval over the bootstrap draws that have a solution; None without draws.
    `share_undefined`: share of draws without a solution.
    """

    r_llm: int
    r_me: float | None
    interval: tuple[float, float] | None
    share_undefined: float
    problem: str | None


def balance_log_rank(theta_me: Floats, theta_llm: Floats, r_llm: float, D: float) -> Floats:
    """Logarithm of Eq. 3's r_me; NaN where the bracket is not positive (complex) or gamma_v is 0.

    Args:
        theta_me: (k, gamma, delta, E) of the vision encoder, shape (4,) or (n_draws, 4).
        theta_llm: the same of the LLM.
        r_llm: LLM rank.
        D: target size, unique samples.

    Returns:
        ln r_me, shape () or (n_draws,).
    """
    k_v, gamma_v, delta_v, E_me = np.moveaxis(np.asarray(theta_me, dtype=np.float64), -1, 0)
    t_llm = steps_to_converge(theta_llm, r_llm, D)
    with np.errstate(invalid="ignore", divide="ignore"):
        log_bracket = np.log(t_llm - E_me) - np.log(k_v) - delta_v * np.log(D)
        log_rank = np.where(gamma_v == 0.0, np.nan, log_bracket / gamma_v)
    return np.asarray(np.where(np.isfinite(log_rank), log_rank, np.nan))


def steps_to_converge(theta: Floats, r: float, D: float) -> Floats:
    """Law C, Eq. 2: k r^gamma D^delta + E, in optimizer steps; shape () or (n_draws,)."""
    k, gamma, delta, E = np.moveaxis(np.asarray(theta, dtype=np.float64), -1, 0)
    with np.errstate(over="ignore"):
        return np.asarray(k * float(r) ** gamma * float(D) ** delta + E)


def balance_curve(law_c_me: LawFit, law_c_llm: LawFit, ranks_llm: Sequence[int], D: float) -> tuple[BalancePoint, ...]:
    """The balance rank of every LLM rank, with interval and share undefined.

    Draw b of one module is paired with draw b of the other; with unequal numbers the shorter one counts.
    """
    return tuple(_balance_point(law_c_me, law_c_llm, r_llm, D) for r_llm in ranks_llm)


def _balance_point(law_c_me: LawFit, law_c_llm: LawFit, r_llm: int, D: float) -> BalancePoint:
    log_rank = float(balance_log_rank(ordered(law_c_me), ordered(law_c_llm), r_llm, D))
    me, llm = ordered_draws(law_c_me), ordered_draws(law_c_llm)
    n_draws = min(len(me), len(llm))
    draws = balance_log_rank(me[:n_draws], llm[:n_draws], r_llm, D)
    undefined = float(np.mean(np.isnan(draws))) if n_draws else 0.0
    problem = _problem(log_rank, law_c_me, law_c_llm, r_llm, D)
    r_me = None if problem else float(np.exp(log_rank))
    return BalancePoint(r_llm, r_me, _interval(draws), undefined, problem)


def _problem(log_rank: float, law_c_me: LawFit, law_c_llm: LawFit, r_llm: int, D: float) -> str | None:
    if np.isnan(log_rank):
        t_llm = float(steps_to_converge(ordered(law_c_llm), r_llm, D))
        E_me, gamma_me = float(ordered(law_c_me)[3]), float(ordered(law_c_me)[1])
        if t_llm <= E_me:
            return (
                f"complex: the LLM is predicted to need {t_llm:.4g} steps, no more than the vision encoder's "
                f"floor of {E_me:.4g}"
            )
        return f"not finite: the vision encoder's time does not depend on its rank (gamma_me = {gamma_me:.3g})"
    if abs(log_rank) > LARGEST_LOG_RANK:
        return f"not finite: the balance rank is exp({log_rank:.3g})"
    return None


def _interval(log_ranks: Floats) -> tuple[float, float] | None:
    defined = log_ranks[~np.isnan(log_ranks)]
    if defined.size == 0:
        return None
    low, high = np.percentile(np.clip(defined, -LARGEST_LOG_RANK, LARGEST_LOG_RANK), INTERVAL)
    return float(np.exp(low)), float(np.exp(high))


LAW_C_SYMBOLS = ("k", "gamma", "delta", "E")


def ordered(fit: LawFit) -> Floats:
    """Coefficients in the order (k, gamma, delta, E), shape (4,)."""
    return fit.theta[_order(fit)]


def ordered_draws(fit: LawFit) -> Floats:
    """Draws in the order (k, gamma, delta, E), shape (n_draws, 4)."""
    return fit.draws[:, _order(fit)]


def _order(fit: LawFit) -> list[int]:
    symbols = get_law(fit.law).symbols
    missing = [symbol for symbol in LAW_C_SYMBOLS if symbol not in symbols]
    if missing:
        raise ValueError(
            f"law {fit.law!r} has no coefficient(s) {', '.join(missing)}: the balance condition needs a fit of "
            "law C, get_law('convergence')."
        )
    return [symbols.index(symbol) for symbol in LAW_C_SYMBOLS]
