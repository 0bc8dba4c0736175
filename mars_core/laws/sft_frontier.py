"""What the from-scratch law says of spending compute: 6 N (D_pretrain + D_SFT) = FLOPs, highest score.

| symbol | meaning |
|---|---|
| theta | A, B, C, E, alpha, beta, gamma of Eq. 1, in the unit that sizes are given in |
| m | min(beta, gamma), the exponent of the kind of data that dominates the compute |
| psi | 6 lambda N, with lambda the Lagrange multiplier of the constraint |

The first-order conditions are D_pretrain^(beta+1) = beta C / psi, D_SFT^(gamma+1) = gamma E / psi and
alpha B / N^alpha = psi (D_pretrain + D_SFT) (MLLM-SFT paper, appendices D and E). The third gives, for large compute,
N ~ psi^(-m / (alpha (m+1))): with it the exponents of N and of the dominating data add up to 1, as the constraint asks.
The paper prints psi^(-1 / (alpha (m+1))) at this step, and exponents that follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

FLOPS_PER_PARAMETER_AND_TOKEN = 6.0


@dataclass(frozen=True)
class Allocation:
    """Parameters and tokens, in the unit of the coefficients."""

    N: float
    D_pretrain: float
    D_SFT: float

    @property
    def flops(self) -> float:
        """6 N (D_pretrain + D_SFT), in the unit squared."""
        return FLOPS_PER_PARAMETER_AND_TOKEN * self.N * (self.D_pretrain + self.D_SFT)


@dataclass(frozen=True)
class Exponents:
    """Powers of FLOPs with which N, D_pretrain and D_SFT grow."""

    N: float
    D_pretrain: float
    D_SFT: float

    @property
    def constraint(self) -> float:
        """Power of FLOPs with which 6 N (D_pretrain + D_SFT) grows; it must be 1."""
        return self.N + max(self.D_pretrain, self.D_SFT)


def sft_tokens(theta: Mapping[str, float], D_pretrain: float) -> float:
    """Best D_SFT for a D_pretrain, both in the coefficients' unit (appendix E)."""
    factor, power = sft_relation(theta)
    return float(factor * D_pretrain**power)


def sft_relation(theta: Mapping[str, float]) -> tuple[float, float]:
    """(c, e) of D_SFT = c D_pretrain^e: (gamma E / (beta C))^(1/(gamma+1)) and (beta+1)/(gamma+1)."""
    beta, gamma = theta["beta"], theta["gamma"]
    factor = (gamma * theta["E"] / (beta * theta["C"])) ** (1.0 / (gamma + 1.0))
    return float(factor), float((beta + 1.0) / (gamma + 1.0))


def best_allocation(theta: Mapping[str, float], flops: float) -> Allocation:
    """The allocation of highest score at this compute, from the exact first-order conditions.

    Args:
        theta: coefficients of Eq. 1; B, C, E and the exponents positive.
        flops: in the coefficients' unit squared (sizes in billions: FLOPs / 1e18).

    Raises:
        ValueError: compute or a coefficient is not positive.
    """
    if not (flops > 0 and all(theta[symbol] > 0 for symbol in ("B", "C", "E", "alpha", "beta", "gamma"))):
        raise ValueError(f"compute and coefficients must be positive, got {flops} and {dict(theta)}")

    def surplus(log_psi: float) -> float:
        log_n, log_pretrain, log_sft = _logs_at(theta, log_psi)
        log_flops = np.log(FLOPS_PER_PARAMETER_AND_TOKEN) + log_n + np.logaddexp(log_pretrain, log_sft)
        return float(log_flops - np.log(flops))

    # N and both D fall as psi grows, so the surplus has one root; the bracket covers any size of a double.
    root = brentq(surplus, -600.0, 600.0, xtol=1e-13, rtol=1e-14)
    return Allocation(*(float(np.exp(value)) for value in _logs_at(theta, root)))


def _logs_at(theta: Mapping[str, float], log_psi: float) -> tuple[float, float, float]:
    """Logs of N, D_pretrain and D_SFT by the first-order conditions."""
    alpha, beta, gamma = (theta[symbol] for symbol in ("alpha", "beta", "gamma"))
    log_pretrain = (np.log(beta * theta["C"]) - log_psi) / (beta + 1.0)
    log_sft = (np.log(gamma * theta["E"]) - log_psi) / (gamma + 1.0)
    log_n = (np.log(alpha * theta["B"]) - log_psi - np.logaddexp(log_pretrain, log_sft)) / alpha
    return float(log_n), float(log_pretrain), float(log_sft)


def exponents(theta: Mapping[str, float]) -> Exponents:
    """Powers of FLOPs for large compute, derived here: N's and the dominating data's add up to 1."""
    alpha, beta, gamma = (theta[symbol] for symbol in ("alpha", "beta", "gamma"))
    m = min(beta, gamma)
    of_data = alpha * (m + 1.0) / (alpha + m)
    return Exponents(m / (alpha + m), of_data / (beta + 1.0), of_data / (gamma + 1.0))


def printed_exponents(theta: Mapping[str, float]) -> Exponents:
    """Powers of FLOPs as appendix D.2 prints them."""
    alpha, beta, gamma = (theta[symbol] for symbol in ("alpha", "beta", "gamma"))
    m = min(beta, gamma)
    p = 1.0 / alpha + (alpha - 1.0) / alpha / (1.0 + m)
    return Exponents(1.0 / (p * alpha * (m + 1.0)), 1.0 / (p * (beta + 1.0)), 1.0 / (p * (gamma + 1.0)))


def printed_allocation(theta: Mapping[str, float], flops: float) -> Allocation:
    """N, D_pretrain and D_SFT at a compute as appendix D.2 prints them, constants included."""
    alpha, beta, gamma = (theta[symbol] for symbol in ("alpha", "beta", "gamma"))
    m = min(beta, gamma)
    p = 1.0 / alpha + (alpha - 1.0) / alpha / (1.0 + m)
    of_pretrain, of_sft = (beta * theta["C"]) ** (1 / (beta + 1)), (gamma * theta["E"]) ** (1 / (gamma + 1))
    C_1 = 6.0 ** (1 / p) * (alpha * theta["B"]) ** (1 / (alpha * p))
    C_1 *= (of_pretrain + of_sft) ** ((alpha - 1) / (alpha * p))
    dominating = of_pretrain if beta <= gamma else of_sft
    psi = C_1 / flops ** (1 / p)
    N = (alpha * theta["B"]) ** (1 / alpha) * dominating ** (-1 / alpha) * C_1 ** (-1 / (alpha * (m + 1)))
    return Allocation(
        N * flops ** (1 / (p * alpha * (m + 1))),
        of_pretrain * psi ** (-1 / (beta + 1)),
        of_sft * psi ** (-1 / (gamma + 1)),
    )
