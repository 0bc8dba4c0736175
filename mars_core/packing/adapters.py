"""LoRA weights of one run in one flat vector, equal to PEFT's at the start and at the end.

A flat vector makes an optimizer step, a gradient norm and a snapshot one operation each. The modality
encoder's weights come first, so that its gradient norm is that of a slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from mars_core.models.lora import RankPair, adapter_state, add_adapters, check_ranks, remove_adapters
from mars_core.models.partition import GROUPS, Group, LinearLayer, Partition

PEFT_A = "base_model.model.{}.lora_A.default.weight"
PEFT_B = "base_model.model.{}.lora_B.default.weight"


@dataclass(frozen=True)
class Slot:
    """Where one layer's adapter lies in a run's flat vector: A as (rank, in), then B transposed as (rank, out).

    B is kept transposed because skinny products with it are several times faster that way.
    """

    layer: LinearLayer
    group: Group
    rank: int
    start: int

    @property
    def middle(self) -> int:
        """Where A ends and B begins."""
        return self.start + self.rank * self.layer.in_features

    @property
    def stop(self) -> int:
        """Where B ends."""
        return self.middle + self.rank * self.layer.out_features

    def a(self, flat: Tensor) -> Tensor:
        """A, shape (rank, in), a view of `flat`."""
        return flat[self.start : self.middle].view(self.rank, self.layer.in_features)

    def b_transposed(self, flat: Tensor) -> Tensor:
        """B transposed, shape (rank, out), a view of `flat`."""
        return flat[self.middle : self.stop].view(self.rank, self.layer.out_features)


@dataclass(frozen=True)
class Layout:
    """Slots of all adapted layers of one rank pair, the modality encoder's first; layers of rank 0 have none."""

    slots: tuple[Slot, ...]

    @cached_property
    def by_layer(self) -> Mapping[str, Slot]:
        """Slots by the layer's path in the base model."""
        return {slot.layer.name: slot for slot in self.slots}

    @cached_property
    def size(self) -> int:
        """Length of the flat vector."""
        return self.slots[-1].stop

    @cached_property
    def groups(self) -> Mapping[Group, tuple[int, int]]:
        """Where each group with adapters begins and ends."""
        bounds: dict[Group, tuple[int, int]] = {}
        for slot in self.slots:
            bounds[slot.group] = (bounds.get(slot.group, (slot.start, 0))[0], slot.stop)
        return bounds

    @cached_property
    def me_size(self) -> int:
        """Length of the modality encoder's part, which comes first."""
        return sum(slot.stop - slot.start for slot in self.slots if slot.group == "me")


def layout_of(partition: Partition, pair: RankPair) -> Layout:
    """Lay out the adapters of a pair.

    Raises:
        ValueError: the ranks do not fit the model.
    """
    check_ranks(partition, pair)
    slots: list[Slot] = []
    start = 0
    for group in GROUPS:
        for layer in partition.group(group):
            if rank := pair.rank(group):
                slots.append(Slot(layer, group, rank, start))
                start = slots[-1].stop
    return Layout(tuple(slots))


def initial_weights(model: nn.Module, partition: Partition, pair: RankPair, seed: int) -> Tensor:
    """The flat weights that PEFT itself gives fresh adapters of `pair` with this seed, on the model's device."""
    wrapped = add_adapters(model, partition, pair, seed=seed)
    try:
        return from_peft(adapter_state(wrapped), layout_of(partition, pair)).to(next(model.parameters()).device)
    finally:
        remove_adapters(wrapped)


def from_peft(state: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Flatten PEFT's adapter weights (names as `PeftModel.named_parameters` gives them)."""
    parts = []
    for slot in layout.slots:
        a, b = state[PEFT_A.format(slot.layer.name)], state[PEFT_B.format(slot.layer.name)]
        parts += [a.reshape(-1), b.T.reshape(-1)]
    return torch.cat(parts)


def to_peft(flat: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Adapter weights under the names and in the shapes of `PeftModel.named_parameters`, copies on the CPU."""
    weights = {}
    for slot in layout.slots:
        weights[PEFT_A.format(slot.layer.name)] = slot.a(flat).detach().cpu().clone()
        weights[PEFT_B.format(slot.layer.name)] = slot.b_transposed(flat).T.detach().cpu().contiguous().clone()
    return weights
