"""Where a linear layer stands: in which block of its module, and as which component of that block."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from mars_core.models.partition import Group, LinearLayer, Partition

MODULES: tuple[Group, ...] = ("me", "llm")
"""Modules whose ranks are shared out; a projector has too few layers for it and keeps its rank."""

# By the last part of a layer's path, in transformers' and the checkpoints' own names. One `fc` of two is the way up.
COMPONENTS = {
    "q": re.compile(r"q_proj|query|wq|q|to_q"),
    "k": re.compile(r"k_proj|key|wk|k|to_k"),
    "v": re.compile(r"v_proj|value|wv|v|to_v"),
    "qkv": re.compile(r"qkv|qkv_proj|wqkv|query_key_value|in_proj_qkv|Wqkv"),
    "o": re.compile(r"o_proj|out_proj|wo|proj|projection_layer|dense|to_out"),
    "gate": re.compile(r"gate_proj|w1|gate"),
    "up": re.compile(r"up_proj|w3|fc1|linear_fc1|fc_in|c_fc"),
    "down": re.compile(r"down_proj|w2|fc2|linear_fc2|fc_out"),
    "gate_up": re.compile(r"gate_up_proj"),
}
_BLOCK = re.compile(r"(?:[^.]+\.)*?\d+(?=\.)")


class Place(NamedTuple):
    """A linear layer of a block. block: its number, from 0. component: `q`, `up`, ...; the layer's own name where none
    of them is known."""

    layer: str
    block: int
    component: str
    in_features: int
    out_features: int

    @property
    def cost(self) -> int:
        """LoRA parameters that a unit of rank adds."""
        return self.in_features + self.out_features

    @property
    def width(self) -> int:
        """The largest rank that it can hold."""
        return min(self.in_features, self.out_features)


def component_of(path: str) -> str:
    """The component that a layer's path names, else the last part of the path itself."""
    own = path.rpartition(".")[2]
    return next((name for name, pattern in COMPONENTS.items() if pattern.fullmatch(own)), own)


def places_of(partition: Partition, group: Group) -> tuple[Place, ...]:
    """The adapted layers of a module that lie in numbered blocks; those outside (a patch embedding) keep their rank.

    Raises:
        ValueError: there are none.
    """
    return places_in(partition.group(group), group)


def places_in(layers: Sequence[LinearLayer], group: Group) -> tuple[Place, ...]:
    """As `places_of`, of layers that are given."""
    blocks: dict[str, int] = {}
    places = []
    for layer in layers:
        if found := _BLOCK.match(layer.name):
            number = blocks.setdefault(found[0], len(blocks))
            places.append(Place(layer.name, number, component_of(layer.name), layer.in_features, layer.out_features))
    if not places:
        raise ValueError(
            f"the {group} has no adapted layers in numbered blocks, so there is nothing to share ranks out over: "
            "keep its one rank"
        )
    return tuple(places)
