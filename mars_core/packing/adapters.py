"""LoRA weights of one run in one vector per group of layers, equal to PEFT's at the start and at the end.

A vector makes an optimizer step, a gradient norm and a snapshot one operation each. The vectors of all groups end to
end are a run's flat weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from mars_core.models.lora import adapter_state, add_adapters, check_ranks, layer_ranks, remove_adapters
from mars_core.models.partition import GROUPS, Group, LinearLayer, Partition
from mars_core.ranks import Alpha, Ranks, lora_scale, rule_of

PEFT_A = "base_model.model.{}.lora_A.default.weight"
PEFT_B = "base_model.model.{}.lora_B.default.weight"


Parts = Mapping[Group, Tensor]
"""A vector for every group that has adapters."""


@dataclass(frozen=True)
class Slot:
    """Where one layer's adapter lies in its group's vector: A as (rank, in), and B transposed as (rank, out).

    B is kept transposed because skinny products with it are several times faster that way. scale: alpha / rank.
    """

    layer: LinearLayer
    group: Group
    rank: int
    a_start: int
    b_start: int
    scale: float

    @property
    def a_stop(self) -> int:
        """Where A ends."""
        return self.a_start + self.rank * self.layer.in_features

    @property
    def b_stop(self) -> int:
        """Where B ends."""
        return self.b_start + self.rank * self.layer.out_features

    def a(self, parts: Parts) -> Tensor:
        """A, shape (rank, in), a view."""
        return parts[self.group][self.a_start : self.a_stop].view(self.rank, self.layer.in_features)

    def b_transposed(self, parts: Parts) -> Tensor:
        """B transposed, shape (rank, out), a view."""
        return parts[self.group][self.b_start : self.b_stop].view(self.rank, self.layer.out_features)


@dataclass(frozen=True)
class Layout:
    """Slots of all layers with an adapter, the modality encoder's first.

    A group's vector holds every A of the group before the first B, so that each half is one vector for an optimizer.
    """

    slots: tuple[Slot, ...]

    @cached_property
    def by_layer(self) -> Mapping[str, Slot]:
        """Slots by the layer's path in the base model."""
        return {slot.layer.name: slot for slot in self.slots}

    @cached_property
    def sizes(self) -> Mapping[Group, int]:
        """Length of the vector of each group with adapters."""
        return {slot.group: slot.b_stop for slot in self.slots}

    @cached_property
    def middles(self) -> Mapping[Group, int]:
        """Where the B of each group begin."""
        return {slot.group: slot.b_start for slot in reversed(self.slots)}

    @property
    def size(self) -> int:
        """Length of the flat weights."""
        return sum(self.sizes.values())


def layout_of(partition: Partition, ranks: Ranks, alpha: Alpha = "2r") -> Layout:
    """Lay out the adapters of a pair or of single layers; `alpha` decides what each product is scaled by.

    Raises:
        ValueError: the ranks do not fit the model.
    """
    check_ranks(partition, ranks)
    by_layer = layer_ranks(partition, ranks)
    slots: list[Slot] = []
    for group in GROUPS:
        adapted = [layer for layer in partition.group(group) if layer.name in by_layer]
        a_start, b_start = 0, sum(by_layer[layer.name] * layer.in_features for layer in adapted)
        for layer in adapted:
            rank = by_layer[layer.name]
            slots.append(Slot(layer, group, rank, a_start, b_start, lora_scale(rule_of(alpha, group), rank)))
            a_start, b_start = slots[-1].a_stop, slots[-1].b_stop
    return Layout(tuple(slots))


def by_group(flat: Tensor, layout: Layout) -> dict[Group, Tensor]:
    """Flat weights cut into the groups' vectors, views."""
    return dict(zip(layout.sizes, torch.split(flat, list(layout.sizes.values())), strict=True))


def flatten(parts: Parts) -> Tensor:
    """The groups' vectors end to end, a copy."""
    return torch.cat([part.detach() for part in parts.values()])


def initial_weights(model: nn.Module, partition: Partition, ranks: Ranks, seed: int) -> Tensor:
    """The flat weights that PEFT itself gives fresh adapters of `ranks` with this seed, on the model's device."""
    wrapped = add_adapters(model, partition, ranks, seed=seed)
    try:
        return from_peft(adapter_state(wrapped), layout_of(partition, ranks)).to(next(model.parameters()).device)
    finally:
        remove_adapters(wrapped)


def from_peft(state: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Flatten PEFT's adapter weights (names as `PeftModel.named_parameters` gives them)."""
    flat = next(iter(state.values())).new_empty(layout.size)
    parts = by_group(flat, layout)
    for slot in layout.slots:
        slot.a(parts).copy_(state[PEFT_A.format(slot.layer.name)])
        slot.b_transposed(parts).copy_(state[PEFT_B.format(slot.layer.name)].T)
    return flat


def to_peft(flat: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Adapter weights under the names and in the shapes of `PeftModel.named_parameters`, copies on the CPU."""
    weights, parts = {}, by_group(flat, layout)
    for slot in layout.slots:
        weights[PEFT_A.format(slot.layer.name)] = slot.a(parts).detach().cpu().clone()
        weights[PEFT_B.format(slot.layer.name)] = slot.b_transposed(parts).T.detach().cpu().contiguous().clone()
    return weights
