"""The parts of a model that cost anything, read off its modules without any weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from mars_core.models.partition import LinearLayer, Partition
from mars_core.packing.footprint import frozen_bytes


@dataclass(frozen=True)
class Architecture:
    """What products and memory are counted from.

    me_attention, llm_attention: width of all heads together, block by block. me_windows: tokens that an attention
    window of each block of the ME spans, None where it spans the picture. patch_weights: weights applied to each patch.
    class_tokens: tokens that the ME adds to each picture. head: hidden width and vocabulary. parameters: all of them,
    tied weights once. frozen_bytes: by how the weights are kept.
    """

    partition: Partition
    me_attention: tuple[int, ...]
    me_windows: tuple[int | None, ...]
    llm_attention: tuple[int, ...]
    patch_weights: int
    class_tokens: int
    head: tuple[int, int]
    parameters: int
    frozen_bytes: dict[str, int]

    @property
    def me_width(self) -> int:
        """Features of a token inside the ME."""
        return self.partition.me[0].in_features

    def projected(self, patches: int) -> int:
        """Tokens that the projector makes of so many patches: it may join several side by side."""
        if not self.partition.projector:
            return patches
        return patches * self.me_width // self.partition.projector[0].in_features


def architecture_of(network: nn.Module, partition: Partition) -> Architecture:
    """Read the parts of a model (it may lie on the meta device)."""
    tower = network.get_submodule(partition.family.me)
    head = network.get_output_embeddings()  # type: ignore[operator]
    attention = _attention_widths(partition.me)
    return Architecture(
        partition=partition,
        me_attention=attention,
        me_windows=_windows(network, len(attention)),
        llm_attention=_attention_widths(partition.llm),
        patch_weights=sum(m.weight.numel() for m in tower.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))),
        class_tokens=sum(name.endswith("cls_token") for name, _ in tower.named_parameters()),
        head=(head.in_features, head.out_features),
        parameters=sum(weight.numel() for weight in network.parameters()),
        frozen_bytes=frozen_bytes(network, partition),
    )


def _attention_widths(layers: Iterable[LinearLayer]) -> tuple[int, ...]:
    # One query layer a block: alone, or with keys and values in one layer of three times the width.
    names = {layer.name.rpartition(".")[2]: layer for layer in layers}
    thirds = {"qkv": 3, "q_proj": 1}
    if not names.keys() & thirds.keys():
        raise ValueError(
            f"the planner finds no attention among the layers {', '.join(sorted(names))}: it looks for q_proj or qkv. "
            "Measure on the machine itself: `mars calibrate STUDY --dry-run` there"
        )
    found = ((layer.name.rpartition(".")[2], layer.out_features) for layer in layers)
    return tuple(width // thirds[name] for name, width in found if name in thirds)


def _windows(network: nn.Module, blocks: int) -> tuple[int | None, ...]:
    vision = getattr(network.config, "vision_config", None)
    window, whole = getattr(vision, "window_size", None), getattr(vision, "fullatt_block_indexes", None)
    if window is None or whole is None:  # Qwen2.5-VL alone has both
        return (None,) * blocks
    side = window // vision.patch_size  # type: ignore[union-attr]
    return tuple(None if block in whole else side * side for block in range(blocks))
