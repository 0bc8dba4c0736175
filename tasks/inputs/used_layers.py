"""Look at a loaded model before it is trained."""

from __future__ import annotations

from mars_core.data.encode import is_seen_or_heard
from mars_core.models.loading import Base
from mars_core.models.partition import check_against_forward, layers_used_by_forward
from mars_core.models.reloading import check_reload
from tasks.inputs.data import scored_batches
from tasks.inputs.opened import Inputs


def check_layers_are_used(inputs: Inputs, base: Base) -> None:
    """Send one sample through the frozen model: an adapter on a layer that is never called would learn nothing.

    Nor is one of use that PEFT does not find again once it is saved.

    Raises:
        ValueError: such a layer is to be adapted.
    """
    check_reload(base.model, base.partition)
    for batch, _ in scored_batches(inputs.validation_set, base, 1)():
        given = {key: value for key, value in batch.items() if key != "labels"}
        if is_seen_or_heard(given):
            check_against_forward(base.partition, layers_used_by_forward(base.model, given))
            return
