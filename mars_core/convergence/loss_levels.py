"""Level `common`: one target loss per size, frozen once, as in time to a target loss (MLPerf)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mars_core.convergence.crossing import starts_at
from mars_core.convergence.curve import Curve, read_curves
from mars_core.convergence.selection import Selection
from mars_core.convergence.signals import select
from mars_core.convergence.sizes import step_of_sizes


@dataclass(frozen=True)
class LossLevel:
    """The loss to come down to for one size: D unique samples, reached at step S_D; loss in nats per token."""

    D: int
    S_D: float
    loss: float


@dataclass(frozen=True)
class LossLevels:
    """Frozen common levels, per scope (`pairs` for slices; `me` and `llm` for isolated runs) and size.

    Where runs were made for one size each, every size has a scope of its own (`pairs, D = 256`).
    The reference pair is frozen with them: a wider grid would otherwise move its lower middle.
    """

    quantile: float
    reference: tuple[int, int] | None
    by_scope: Mapping[str, tuple[LossLevel, ...]]

    def to_json(self) -> dict[str, Any]:
        """JSON-safe form, to be stored with the study so that later pairs meet the same levels."""
        return {
            "quantile": self.quantile,
            "reference": None if self.reference is None else list(self.reference),
            "by_scope": {scope: [vars(level) for level in levels] for scope, levels in self.by_scope.items()},
        }

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> "LossLevels":
        """Read what `to_json` wrote."""
        by_scope = {
            scope: tuple(LossLevel(int(x["D"]), float(x["S_D"]), float(x["loss"])) for x in levels)
            for scope, levels in stored["by_scope"].items()
        }
        reference = stored["reference"]
        pair = None if reference is None else (int(reference[0]), int(reference[1]))
        return LossLevels(float(stored["quantile"]), pair, by_scope)


def freeze_levels(
    metrics: pd.DataFrame,
    *,
    signal: str = "slice",
    quantile: float = 0.9,
    reference: tuple[int, int] | None = None,
) -> LossLevels:
    """Common levels of the first design's runs: store them and pass them to `convergence_times` from then on.

    Args:
        metrics: checkpoint metrics of the first design, one row per (run_id, step).
        signal: `slice` or `isolated`.
        quantile: which quantile of the runs' floors at a size is the level; in (0, 1].
        reference: rank pair at which the slices cross; default the lower middle of the grid.
    """
    return levels_of(select(signal, read_curves(metrics), reference), quantile)


def levels_of(selection: Selection, quantile: float) -> LossLevels:
    """Per scope and size: the quantile of the floors that the runs reached by S_D."""
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"quantile must lie in (0, 1], got {quantile}: 0.9 lets nine runs in ten reach the level.")
    by_scope = {scope: tuple(_scope_levels(curves, quantile)) for scope, curves in selection.scopes.items()}
    return LossLevels(quantile, selection.reference, by_scope)


def _scope_levels(curves: Sequence[Curve], quantile: float) -> list[LossLevel]:
    """Levels of the sizes at which no run is already at the level by its first checkpoint."""
    levels = []
    for size, step in step_of_sizes(curves).items():
        loss = _floor_quantile(curves, step, quantile)
        if not any(starts_at(curve.loss, loss) for curve in curves):
            levels.append(LossLevel(size, step, loss))
    return levels


def _floor_quantile(curves: Sequence[Curve], step: float, quantile: float) -> float:
    floors = [curve.loss_by(step) for curve in curves if curve.last_step >= step]
    return float(np.quantile(floors, quantile))
