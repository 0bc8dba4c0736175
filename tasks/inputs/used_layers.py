"""Look at a loaded model before it is trained."""

from __future__ import annotations

from mars_core.models.loading import Base
from mars_core.models.partition import check_against_forward, layers_used_by_forward
from tasks.inputs.data import scored_batches, validation_set
from tasks.settings.study import StudyConfig


def check_layers_are_used(config: StudyConfig, base: Base) -> None:
    """Send one sample through the frozen model: an adapter on a layer that is never called would learn nothing.

    Raises:
        ValueError: such a layer is to be adapted.
    """
    for batch, _ in scored_batches(validation_set(config), base, 1)():
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        if "pixel_values" in inputs:
            check_against_forward(base.partition, layers_used_by_forward(base.model, inputs))
            return
