"""The library's laws by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mars_core.laws.chinchilla import CHINCHILLA
from mars_core.laws.convergence import CONVERGENCE
from mars_core.laws.law import Law
from mars_core.laws.log_linear import LOG_LINEAR
from mars_core.laws.performance import PERFORMANCE
from mars_core.laws.performance_imbalance import PERFORMANCE_IMBALANCE
from mars_core.laws.performance_no_floor import PERFORMANCE_NO_FLOOR
from mars_core.laws.performance_no_rank import PERFORMANCE_NO_RANK
from mars_core.laws.performance_overfit import PERFORMANCE_OVERFIT

LAWS: Mapping[str, Law] = MappingProxyType(
    {
        law.name: law
        for law in (
            PERFORMANCE,
            CONVERGENCE,
            CHINCHILLA,
            PERFORMANCE_IMBALANCE,
            PERFORMANCE_OVERFIT,
            PERFORMANCE_NO_FLOOR,
            PERFORMANCE_NO_RANK,
            LOG_LINEAR,
        )
    }
)


def get_law(name: str) -> Law:
    """The law called `name`.

    Raises:
        ValueError: no such law; the message lists those there are.
    """
    if name not in LAWS:
        raise ValueError(f"no law called {name!r}; the library has: {', '.join(LAWS)}")
    return LAWS[name]
