"""An adapter batch: runs that go through the model side by side, and the pass that is under way in this thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from mars_core.packing.adapters import Layout, Parts
from mars_core.packing.batch import PackedBatch


@dataclass(frozen=True)
class Adapter:
    """Views of one run's weights and gradients in one layer: A (r, in) and B transposed (r, out); scale: alpha/r."""

    a: Tensor
    b_transposed: Tensor
    a_grad: Tensor
    b_transposed_grad: Tensor
    scale: float


@dataclass(frozen=True)
class Stack:
    """Adapters of G runs side by side with one rank in one layer: views of shapes (G, r, in) and (G, r, out).

    runs: which of the adapter batch they are. scale: alpha/r, theirs in common.
    """

    runs: slice
    a: Tensor
    b_transposed: Tensor
    a_grad: Tensor
    b_transposed_grad: Tensor
    scale: float


Stacks = tuple[Stack, ...]


@dataclass(frozen=True)
class Dropout:
    """Dropout before A: its probability, and for every run the generator that its masks come from."""

    probability: float
    generators: tuple[torch.Generator, ...]


@dataclass(frozen=True)
class AdapterBatch:
    """Adapters of the runs, by layer; runs of rank 0 are in no stack of it.

    frozen_me: no run adapts the modality encoder, so all of them read the same features. anchor: a scalar that needs
    a gradient; its only use is that layers before any other such input are recorded.
    """

    width: int
    adapters: Mapping[str, Stacks]
    frozen_me: bool
    anchor: Tensor


def make_adapter_batch(layouts: Sequence[Layout], weights: Sequence[Parts], gradients: Sequence[Parts]) -> AdapterBatch:
    """An adapter batch over the weights and gradients of its runs; views, no copies."""
    names = dict.fromkeys(name for layout in layouts for name in layout.by_layer)
    runs = list(zip(layouts, weights, gradients, strict=True))
    adapters = {name: stack([_adapter(*run, name) for run in runs]) for name in names}
    frozen_me = not any("me" in layout.sizes for layout in layouts)
    device = next(iter(weights[0].values())).device
    return AdapterBatch(len(layouts), adapters, frozen_me, torch.zeros((), device=device, requires_grad=True))


def _adapter(layout: Layout, weights: Parts, gradients: Parts, name: str) -> Adapter | None:
    slot = layout.by_layer.get(name)
    if slot is None:
        return None
    return Adapter(
        slot.a(weights), slot.b_transposed(weights), slot.a(gradients), slot.b_transposed(gradients), slot.scale
    )


def stack(adapters: Sequence[Adapter | None]) -> Stacks:
    """Put neighbours of equal rank and scale together that lie at equal distances in memory, as rows of a matrix do."""
    runs: list[list[int]] = []
    for number, adapter in enumerate(adapters):
        if adapter is None:
            continue
        run = [*runs[-1], number] if runs else []
        if run and run[-1] - run[0] == len(run) - 1 and _evenly_spaced([adapters[one] for one in run]):
            runs[-1] = run
        else:
            runs.append([number])
    return tuple(_stacked([adapters[one] for one in run], slice(run[0], run[-1] + 1)) for run in runs)


_FIELDS = ("a", "b_transposed", "a_grad", "b_transposed_grad")


def _evenly_spaced(adapters: Sequence[Adapter | None]) -> bool:
    if len({adapter.scale for adapter in adapters if adapter is not None}) > 1:
        return False
    for name in _FIELDS:
        views: list[Tensor] = [getattr(adapter, name) for adapter in adapters]
        alike = {(view.shape, view.untyped_storage().data_ptr()) for view in views}
        offsets = [view.storage_offset() for view in views]
        if (
            len(alike) > 1
            or len({after - before for before, after in pairwise(offsets)}) > 1
            or offsets[1] <= offsets[0]
        ):
            return False
    return True


def _stacked(adapters: Sequence[Adapter | None], runs: slice) -> Stack:
    views = [_one_view([getattr(adapter, name) for adapter in adapters]) for name in _FIELDS]
    first = adapters[0]
    assert first is not None
    a, b_transposed, a_grad, b_transposed_grad = views
    return Stack(runs, a, b_transposed, a_grad, b_transposed_grad, first.scale)


def _one_view(views: Sequence[Tensor]) -> Tensor:
    first = views[0]
    if len(views) == 1:
        return first[None]
    spacing = views[1].storage_offset() - first.storage_offset()
    return first.as_strided((len(views), *first.shape), (spacing, *first.stride()))


@dataclass(frozen=True)
class Pass:
    """One forward pass of an adapter batch over a batch.

    dropout: None outside of training and where the recipe has none. reached: the adapted layers that it went through so
    far; added to as it goes.
    """

    adapter_batch: AdapterBatch
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
