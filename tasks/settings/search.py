"""The `search` section: how the pair is chosen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mars_core.search import Constraint, MaxAdapterBytes, MaxTrainableParameters, SameParametersAsUniform
from tasks.settings.ranks import Ranks
from tasks.settings.section import Section

BESIDE_THE_CHOICE = ("max_forgetting", "forgetting_weight")
"""Settings that decide no pair: what was chosen without them stays chosen."""


class SearchConfig(Section):
    """How the pair is chosen."""

    ranks: Ranks | None = Field(
        None, description="Available ranks, of both modules or of each (default: the calibration ranks)"
    )
    target_samples: int | None = Field(
        None,
        ge=1,
        description="Dataset size to choose for, in unique samples (default: what the final run's epochs over the "
        "training set are worth)",
    )
    law: Literal["mars", "paper"] = Field(
        "mars", description="`paper` keeps Eq. 1, Eq. 3 and the nearest rank as printed"
    )
    max_trainable_parameters: int | None = Field(None, ge=1, description="Largest number of LoRA parameters")
    max_adapter_megabytes: float | None = Field(None, gt=0, description="Largest adapter file, in MB at 4 bytes each")
    same_parameters_as_uniform: int | None = Field(
        None, ge=1, description="Only pairs with as many LoRA parameters as this uniform rank, within 10%"
    )
    margin: float = Field(
        0.0025, ge=0, lt=1, description="Relative excess perplexity (or objective) that a cheaper pair may have"
    )
    objective: str = Field(
        "perplexity",
        pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$",
        description="What the search minimises: perplexity, token_error, exact_match_error, letter_error, or a metric "
        "of an installed package (entry points `mars.metrics`); set it before calibrating",
    )

    max_forgetting: float | None = Field(
        None,
        ge=0,
        description="Most points that a final run may lose on the upstream tasks (F) to become champion; needs "
        "the `upstream` section (default: no limit)",
    )
    forgetting_weight: float | None = Field(
        None,
        ge=0,
        description="Also measure each calibrated pair's loss on the upstream tasks, and show it against the predicted "
        "loss, sorted by their weighted sum: nats of target loss that a nat of upstream loss is worth. It informs, and "
        "chooses no pair; needs `upstream` and calibration.snapshots (default: not measured)",
    )

    def as_constraints(self) -> list[Constraint]:
        """What the user demands of a pair, as mars_core's records."""
        found: list[Constraint] = []
        if self.max_trainable_parameters is not None:
            found.append(MaxTrainableParameters(self.max_trainable_parameters))
        if self.max_adapter_megabytes is not None:
            found.append(MaxAdapterBytes(int(self.max_adapter_megabytes * 1e6)))
        if self.same_parameters_as_uniform is not None:
            found.append(SameParametersAsUniform(self.same_parameters_as_uniform))
        return found
