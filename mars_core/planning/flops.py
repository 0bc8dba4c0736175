"""Floating-point operations of a forward pass and of a training step with frozen weights, product by product.

A product of a token with a weight costs 2 operations. Going back through a frozen layer costs as much as going forward:
there is an input gradient, but no weight gradient. An adapter has both. Attention costs twice its forward pass on the
way back. Norms, activations and other work that moves memory rather than multiplies are left out; the assumed
utilisation covers them. Attention is counted without regard to its mask. On the way back the first block's inputs need
no gradient, which is not taken off. Apart from that, counts are those of torch's FlopCounterMode (tests).
"""

from __future__ import annotations

from dataclasses import dataclass

from mars_core.models.partition import GROUPS, Group, LinearLayer
from mars_core.planning.architecture import Architecture
from mars_core.planning.shapes import SampleShape
from mars_core.ranks import RankPair


@dataclass(frozen=True)
class Work:
    """Operations of one sample: linear layers by group, attention of ME and LLM, patches, the head at answer tokens."""

    layers: dict[Group, int]
    attention: dict[Group, int]
    patches: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.layers.values()) + sum(self.attention.values()) + self.patches + self.head


def group_tokens(architecture: Architecture, shape: SampleShape) -> dict[Group, int]:
    """Tokens that pass through the layers of each group."""
    inside = shape.patches + architecture.class_tokens * len(shape.pictures)
    return {"me": inside, "projector": architecture.projected(shape.patches), "llm": shape.tokens}


def forward_work(architecture: Architecture, shape: SampleShape) -> Work:
    """Operations of one sample's forward pass, with logits at answer tokens alone."""
    tokens = group_tokens(architecture, shape)
    hidden, vocabulary = architecture.head
    weights = {group: sum(map(_weights, architecture.partition.every(group))) for group in GROUPS}
    return Work(
        layers={group: 2 * tokens[group] * weights[group] for group in GROUPS},
        attention={"me": _vision_attention(architecture, shape), "llm": _llm_attention(architecture, shape.tokens)},
        patches=2 * shape.patches * architecture.patch_weights,
        head=2 * shape.answers * hidden * vocabulary,
    )


def training_flops(architecture: Architecture, shape: SampleShape, pair: RankPair, *, recomputed: bool = False) -> int:
    """Operations of one sample in a training step with adapters of `pair`.

    recomputed: with gradient checkpointing, which runs ME and LLM forward once more.
    """
    forward = forward_work(architecture, shape)
    backward: list[Group] = ["projector", "llm"] if pair.r_me == 0 else list(GROUPS)
    back = sum(forward.layers[group] + 2 * forward.attention.get(group, 0) for group in backward) + forward.head
    again = sum(forward.layers[group] + forward.attention[group] for group in forward.attention) if recomputed else 0
    return forward.total + back + again + 3 * adapter_flops(architecture, shape, pair)


def adapter_flops(architecture: Architecture, shape: SampleShape, pair: RankPair) -> int:
    """Operations of the adapters' forward pass: r * (in + out) products a token."""
    tokens = group_tokens(architecture, shape)
    partition = architecture.partition
    return sum(
        2 * tokens[group] * partition.rank(pair, group) * partition.parameters_per_rank(group) for group in GROUPS
    )


def _weights(layer: LinearLayer) -> int:
    return layer.in_features * layer.out_features


def _vision_attention(architecture: Architecture, shape: SampleShape) -> int:
    total = 0
    for width, window in zip(architecture.me_attention, architecture.me_windows, strict=True):
        for patches in shape.pictures:
            length = patches + architecture.class_tokens
            total += 4 * length * min(length, window or length) * width
    return total


def _llm_attention(architecture: Architecture, tokens: int) -> int:
    return sum(4 * tokens * tokens * width for width in architecture.llm_attention)
