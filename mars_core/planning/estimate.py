"""Time and memory of a study's calibration and final run on a named device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mars_core.models.lora import trainable_parameters
from mars_core.packing.cost import ACTIVATION_MARGIN, WIDEST_ADAPTER_BATCH
from mars_core.planning.architecture import Architecture
from mars_core.planning.devices import Device
from mars_core.planning.flops import forward_work, training_flops
from mars_core.planning.memory import (
    activation_bytes,
    checkpointed_bytes,
    packed_bytes,
    scoring_bytes,
    trained_bytes,
    weights_bytes,
)
from mars_core.planning.shapes import SampleShape
from mars_core.ranks import RankPair

USABLE = 0.9
"""Share of a device's memory that a run may take; the rest is the driver's and the allocator's."""


Passes = Literal["packed", "peft", "checkpointed"]
KEPT = {"packed": packed_bytes, "peft": activation_bytes, "checkpointed": checkpointed_bytes}
"""What one sample's forward pass keeps, by how runs are trained."""


@dataclass(frozen=True)
class Budget:
    """What is trained and scored, and how.

    steps: optimizer steps of one run, of `batch` samples, `micro_batch` at a time. scored: samples scored in all, in
    batches of `scored_batch`. dtype: of the frozen weights. passes: how runs are trained, which decides what they keep.
    lengths: where a pair has runs of so many lengths, `steps` is their sum, and those of a length are packed together.
    """

    pairs: tuple[RankPair, ...]
    steps: int
    batch: int
    micro_batch: int
    scored: int
    scored_batch: int
    dtype: str
    four_bit: bool
    passes: Passes
    lengths: int = 1


@dataclass(frozen=True)
class Estimate:
    """What one phase takes on a device.

    seconds: training and scoring; scoring_seconds: the latter alone.
    memory: bytes by what they are for; training and scoring take turns, so the larger of them counts. packs: into how
    many packs the runs must be cut; runs_at_once: runs whose activations fit beside each other.
    """

    flops: float
    seconds: float
    scoring_seconds: float
    memory: dict[str, int]
    packs: int
    runs_at_once: int
    room: int

    @property
    def total_bytes(self) -> int:
        """All that is held at once."""
        return self.memory["weights"] + self.memory["adapters"] + max(self.memory["training"], self.memory["scoring"])

    @property
    def fits(self) -> bool:
        """Whether the device holds it."""
        return self.total_bytes <= self.room

    def as_json(self) -> dict[str, Any]:
        """The estimate as JSON values."""
        return {
            "flops": self.flops,
            "seconds": self.seconds,
            "scoring_seconds": self.scoring_seconds,
            "memory_bytes": self.memory | {"total": self.total_bytes},
            "usable_bytes": self.room,
            "fits": self.fits,
            "packs": self.packs,
            "runs_at_once": self.runs_at_once,
        }


def estimate(
    architecture: Architecture,
    shapes: Sequence[SampleShape],
    budget: Budget,
    device: Device,
    utilisation: float,
    *,
    extremes: Sequence[SampleShape] = (),
) -> Estimate:
    """Time and memory of training every pair of a budget, and of the scoring that goes with it.

    Args:
        shapes: of samples that stand for the dataset: their mean counts for time, the longest for memory.
        extremes: of samples that count for memory alone, such as the dataset's longest.
        utilisation: share of the device's peak that is reached; an assumption.

    Raises:
        ValueError: there is no sample, or the utilisation is not a share.
    """
    if not shapes or not 0 < utilisation <= 1:
        raise ValueError(
            f"expected at least one sample and a utilisation above 0 and up to 1, got {len(shapes)} samples and "
            f"{utilisation}"
        )
    training, scoring = _training_flops(architecture, shapes, budget), _scoring_flops(architecture, shapes, budget)
    speed = device.peak_flops(budget.dtype) * utilisation
    largest = max(budget.pairs, key=lambda pair: trainable_parameters(architecture.partition, pair))
    held = [*shapes, *extremes]
    kept = max(KEPT[budget.passes](architecture, shape, largest, budget.dtype) for shape in held)
    scored = max(scoring_bytes(architecture, shape, budget.dtype) for shape in held)
    each = int(ACTIVATION_MARGIN * budget.micro_batch * kept)
    weights = weights_bytes(architecture, budget.dtype, four_bit=budget.four_bit)
    room = int(USABLE * device.memory_bytes)
    packs, adapters = _cut(architecture, budget.pairs, room - weights - each)
    runs = -(-len(budget.pairs) // packs)
    at_once = max(1, min(runs, WIDEST_ADAPTER_BATCH["cuda"], (room - weights - adapters) // each))
    memory = {
        "weights": weights,
        "adapters": adapters,
        "training": at_once * each,
        "scoring": int(ACTIVATION_MARGIN * budget.scored_batch * scored),
    }
    flops = training + scoring
    return Estimate(flops, flops / speed, scoring / speed, memory, packs * budget.lengths, at_once, room)


def _training_flops(architecture: Architecture, shapes: Sequence[SampleShape], budget: Budget) -> float:
    recomputed = budget.passes == "checkpointed"
    of_one_sample = sum(
        training_flops(architecture, shape, pair, recomputed=recomputed) for pair in budget.pairs for shape in shapes
    ) / len(shapes)
    return of_one_sample * budget.steps * budget.batch


def _scoring_flops(architecture: Architecture, shapes: Sequence[SampleShape], budget: Budget) -> float:
    of_one_sample = sum(forward_work(architecture, shape).total for shape in shapes) / len(shapes)
    return of_one_sample * budget.scored


def _cut(architecture: Architecture, pairs: Sequence[RankPair], room: int) -> tuple[int, int]:
    """The smallest number of packs whose adapters fit, and the bytes of the largest pack's."""
    ordered = sorted(pairs, key=lambda pair: trainable_parameters(architecture.partition, pair))
    for packs in range(1, len(ordered) + 1):
        largest = max(trained_bytes(architecture, ordered[first::packs]) for first in range(packs))
        if largest <= room:
            return packs, largest
    return len(ordered), trained_bytes(architecture, ordered[-1:])
