"""A lane: members that go through the model side by side, and the pass that is under way in this thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mars_core.packing.adapters import Layout
from mars_core.packing.batch import PackedBatch


@dataclass(frozen=True)
class Adapter:
    """Views of one member's weights and gradients in one layer: A (r, in) and B transposed (r, out)."""

    a: Tensor
    b_transposed: Tensor
    a_grad: Tensor
    b_transposed_grad: Tensor

    @property
    def rank(self) -> int:
        """LoRA rank."""
        return self.a.shape[0]


Adapters = tuple[Adapter | None, ...]


@dataclass(frozen=True)
class Dropout:
    """Dropout before A: its probability, and for every member the generator that its masks come from."""

    probability: float
    generators: tuple[torch.Generator, ...]


@dataclass(frozen=True)
class Lane:
    """Adapters of the members, by layer: `adapters[name][m]` is member m's, None where its rank is 0.

    frozen_me: no member adapts the modality encoder, so all of them read the same features. anchor: a scalar that needs
    a gradient; its only use is that layers before any other such input are recorded.
    """

    width: int
    adapters: Mapping[str, Adapters]
    frozen_me: bool
    anchor: Tensor


def make_lane(layouts: Sequence[Layout], weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Lane:
    """A lane over the flat weights and flat gradients of its members; views, no copies."""
    names = dict.fromkeys(name for layout in layouts for name in layout.by_layer)
    members = list(zip(layouts, weights, gradients, strict=True))
    adapters = {name: tuple(_adapter(*member, name) for member in members) for name in names}
    frozen_me = not any(layout.me_size for layout in layouts)
    return Lane(len(layouts), adapters, frozen_me, torch.zeros((), device=weights[0].device, requires_grad=True))


def _adapter(layout: Layout, weights: Tensor, gradients: Tensor, name: str) -> Adapter | None:
    slot = layout.by_layer.get(name)
    if slot is None:
        return None
    return Adapter(slot.a(weights), slot.b_transposed(weights), slot.a(gradients), slot.b_transposed(gradients))


@dataclass(frozen=True)
class Pass:
    """One forward pass of a lane over a batch.

    dropout: None outside of training and where the recipe has none. reached: the adapted layers that it went through so
    far; added to as it goes.
    """

    lane: Lane
    batch: PackedBatch
    dropout: Dropout | None = None
    reached: set[str] = field(default_factory=set)


class _Current(threading.local):
    value: Pass | None = None


_current = _Current()


def current_pass() -> Pass | None:
    """The pass under way in this thread, None outside of one."""
    return _current.value


@contextmanager
def running(this: Pass) -> Iterator[None]:
    """Make `this` the current pass of this thread."""
    _current.value = this
    try:
        yield
    finally:
        _current.value = None
