"""The library's laws by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mars_core.laws.chinchilla import CHINCHILLA
from mars_core.laws.convergence import CONVERGENCE
from mars_core.laws.law import Law
from mars_core.laws.log_linear import LOG_LINEAR
from mars_core.laws.loss_to_score import LOSS_TO_SCORE
from mars_core.laws.loss_to_score_power import LOSS_TO_SCORE_POWER
from mars_core.laws.performance import PERFORMANCE
from mars_core.laws.performance_imbalance import PERFORMANCE_IMBALANCE
from mars_core.laws.performance_no_floor import PERFORMANCE_NO_FLOOR
from mars_core.laws.performance_no_rank import PERFORMANCE_NO_RANK
from mars_core.laws.performance_overfit import PERFORMANCE_OVERFIT
from mars_core.laws.score_power import SCORE_POWER
from mars_core.laws.sft_joint import SFT_JOINT
from mars_core.laws.sft_nonlinear import SFT_NONLINEAR
from mars_core.laws.sft_pretrained import SFT_PRETRAINED
from mars_core.laws.sft_scratch import SFT_SCRATCH

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
            SFT_SCRATCH,
            SFT_PRETRAINED,
            LOSS_TO_SCORE,
            SFT_JOINT,
            SFT_NONLINEAR,
            SCORE_POWER,
            LOSS_TO_SCORE_POWER,
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
