"""One convergence time, and the table of them that law C is fitted to."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pandas as pd

from mars_core.convergence.signals import Module, ModuleCurve


@dataclass(frozen=True)
class TimeRow:
    """Steps that `module` at rank `r` needs at size D (reached at step S_D); a lower bound if `censored`.

    `target` is what the curve had to come down to: a loss in nats per answer token, or a relative distance.
    """

    module: Module
    r: int
    D: int
    S_D: float
    steps: float
    censored: bool
    run_id: str
    r_me: int
    r_llm: int
    seed: int
    target: float


COLUMNS = tuple(TimeRow.__dataclass_fields__)


def time_row(module_curve: ModuleCurve, D: int, S_D: float, steps: float, censored: bool, target: float) -> TimeRow:
    """The row of one run at one size."""
    curve = module_curve.curve
    return TimeRow(
        module_curve.module, module_curve.r, D, S_D, steps, censored,
        curve.run_id, curve.r_me, curve.r_llm, curve.seed, target,
    )  # fmt: skip


def table_of(rows: Iterable[TimeRow]) -> pd.DataFrame:
    """The rows as a table, in the column order of `TimeRow`."""
    return pd.DataFrame([asdict(row) for row in rows], columns=list(COLUMNS))
