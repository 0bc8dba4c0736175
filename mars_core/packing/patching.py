"""Lead a model's forward pass through the current `Pass`, without changing its classes.

What is touched is given back as it was: `forward` of instances (adapted linear layers, what comes before them, norms,
gated MLPs), hooks at the entry layers of vision tower, language model and output head, the name of the attention
function, and one function of the language model's source module, the rotary embedding, which outside of a pass is what
it was.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mars_core.models.partition import GROUPS, Partition
from mars_core.packing.adapter_batch import Pass, Stacks, current_pass
from mars_core.packing.kernels.attention import MARK, attention_within_sequences
from mars_core.packing.kernels.linear import add_low_rank, merged_linear, merging_pays
from mars_core.packing.kernels.norm import rms_norm
from mars_core.packing.kernels.rotary import FUNCTION, fits, rotate
from mars_core.packing.kernels.swiglu import swiglu


@dataclass(frozen=True)
class Structure:
    """What a model's forward pass allows to leave out; found by `mars_core.packing.examine`, never assumed.

    unpadded: attention is plain and causal, so the language model can be given the real tokens alone.
    answers_only: layers whose output is read at the answer rows alone (those of the last block), except those
    in `answer_tails`: modules that work row by row and are read at the answer rows alone, as a whole.
    shared: modules with parameters whose input is the same for every run (patch embeddings).
    projector_entry_layers: projector layers that read what the vision tower gives, the first ones there.
    norms, gates: modules that compute what `kernels.norm` does, MLPs with that of `kernels.gate`.
    rotary: source modules whose rotary embedding is that of `kernels.rotary`.
    side_by_side: whether several runs can go through in one forward pass. A model that walks over pictures one by one
    hands its layers rows of a single run, which cannot be told from those of several.
    distinct_pictures: the vision tower works row by row on what it is given, so that equal rows (a picture asked about
    twice, or equal to its own crop) need be seen once.
    """

    unpadded: bool
    answers_only: frozenset[str] = frozenset()
    answer_tails: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    projector_entry_layers: frozenset[str] = frozenset()
    norms: frozenset[str] = frozenset()
    gates: frozenset[str] = frozenset()
    rotary: frozenset[str] = frozenset()
    distinct_pictures: bool = False
    side_by_side: bool = True

    def with_every_row(self) -> Structure:
        """The savings that are left where dropout draws masks for every token and every picture."""
        return replace(self, answers_only=frozenset(), answer_tails=frozenset(), distinct_pictures=False)


@contextmanager
def patched(model: nn.Module, partition: Partition, structure: Structure) -> Iterator[None]:
    """While the block runs, forward passes of `model` in a thread with a current pass are its adapter batch's."""
    language_model = model.get_submodule(partition.family.llm)
    head = model.get_output_embeddings()  # type: ignore[operator]
    with ExitStack() as stack:
        for group in GROUPS:
            for layer in partition.group(group):
                linear = model.get_submodule(layer.name)
                assert isinstance(linear, nn.Linear)  # as the partition found it
                forward = partial(_linear, linear, layer.name, structure, linear.forward)
                stack.enter_context(_forward_of(linear, forward))
        for name in structure.shared:
            module = model.get_submodule(name)
            stack.enter_context(_forward_of(module, partial(_once_for_all, module.forward)))
        if structure.projector_entry_layers:
            for number, block in enumerate(vision_blocks(model, partition)):
                forward = partial(_vision_block, number == 0, len(structure.projector_entry_layers), block.forward)
                stack.enter_context(_forward_of(block, forward))
        for name in structure.norms:
            norm = model.get_submodule(name)
            stack.enter_context(_forward_of(norm, partial(_norm, norm)))
        for name in structure.gates:
            mlp = model.get_submodule(name)
            stack.enter_context(_forward_of(mlp, partial(_gated, mlp)))
        for name in structure.answer_tails:
            tail = model.get_submodule(name)
            stack.enter_context(_forward_of(tail, partial(_at_answer_rows, tail.forward)))
        for source in structure.rotary:
            stack.enter_context(_rotary_of(sys.modules[source]))
        if structure.distinct_pictures:
            tower = model.get_submodule(partition.family.me)
            stack.enter_context(_forward_of(tower, partial(_each_picture_once, tower.forward)))
        for name in structure.answers_only:
            stack.enter_context(_marked(model.get_submodule(name.rpartition(".")[0])))
        if structure.unpadded:
            stack.enter_context(attention_within_sequences(language_model))
            stack.enter_context(_hook(language_model.register_forward_pre_hook(_drop_padding, with_kwargs=True)))
        stack.enter_context(_hook(head.register_forward_pre_hook(_gather_answers)))
        yield


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = vars(module).get("forward")  # of another wrapper, or none
    module.forward = forward
    try:
        yield
    finally:
        del module.forward  # the class's own shows again
        if before is not None:
            module.forward = before


@contextmanager
def _rotary_of(source: ModuleType) -> Iterator[None]:
    """Lead a module's rotary embedding through passes; the function is shared by every model of that source."""
    with _rotary_lock:
        users, original = _rotary_users.get(source, (0, getattr(source, FUNCTION)))
        _rotary_users[source] = users + 1, original
        setattr(source, FUNCTION, partial(_rotary, original))
    try:
        yield
    finally:
        with _rotary_lock:
            users, original = _rotary_users.pop(source)
            if users > 1:
                _rotary_users[source] = users - 1, original
            else:
                setattr(source, FUNCTION, original)


_rotary_lock = threading.Lock()
_rotary_users: dict[ModuleType, tuple[int, Callable[..., Any]]] = {}
"""How many patched models use a source, and its own function: packs may overlap in threads."""


@contextmanager
def _marked(module: nn.Module) -> Iterator[None]:
    setattr(module, MARK, True)
    try:
        yield
    finally:
        if hasattr(module, MARK):  # siblings share the mark
            delattr(module, MARK)


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _linear(
    layer: nn.Linear, name: str, structure: Structure, original: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    this = current_pass()
    adapters = None if this is None else this.adapter_batch.adapters.get(name)
    if this is None or adapters is None:
        return original(x)
    this.reached.add(name)
    if this.adapter_batch.frozen_me and name in structure.projector_entry_layers:
        return _door(layer, name, original, x, adapters, this)
    by_run = x.reshape(this.adapter_batch.width, -1, layer.in_features)
    if name in structure.answers_only:
        rows = this.batch.answer_rows
        y = _product(layer, original, by_run.index_select(1, rows), adapters, this)
        y = _zeros_elsewhere(y, rows, by_run.shape[1])
    else:
        y = _product(layer, original, by_run, adapters, this)
    return y.view(*x.shape[:-1], layer.out_features)


def _door(
    layer: nn.Linear, name: str, original: Callable[[Tensor], Tensor], x: Tensor, adapters: Stacks, this: Pass
) -> Tensor:
    """The first layer that tells runs apart: it reads the same features for all of them."""
    x = this.batch.features.setdefault(name, x.detach())
    width = this.adapter_batch.width
    y = _product(layer, original, x.reshape(1, -1, layer.in_features).expand(width, -1, -1), adapters, this)
    return y.view(width * x.shape[0], *x.shape[1:-1], layer.out_features)


def _product(layer: nn.Linear, original: Callable[[Tensor], Tensor], x: Tensor, adapters: Stacks, this: Pass) -> Tensor:
    anchor, dropout = this.adapter_batch.anchor, this.dropout
    if dropout is None and _full_precision(layer) and merging_pays(x.shape[1], layer.in_features, layer.out_features):
        return merged_linear(x, layer.weight, layer.bias, adapters, anchor)
    return add_low_rank(original(x), x, adapters, anchor, dropout)


def _full_precision(layer: nn.Linear) -> bool:
    # A quantized layer is a subclass with a weight of another dtype.
    return layer.weight.dtype in (torch.float32, torch.float64)


def _zeros_elsewhere(y: Tensor, rows: Tensor, count: int) -> Tensor:
    """(M, n, out) at `rows` of (M, count, out)."""
    return y.new_zeros((y.shape[0], count, y.shape[2])).index_copy(1, rows, y)


def _at_answer_rows(original: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    this = current_pass()
    if this is None:
        return original(x)
    by_run = x.reshape(this.adapter_batch.width, -1, x.shape[-1])
    rows = this.batch.answer_rows
    y = original(by_run.index_select(1, rows))
    return _zeros_elsewhere(y, rows, by_run.shape[1]).view(*x.shape[:-1], y.shape[-1])


def _gated(mlp: Any, x: Tensor) -> Tensor:
    y: Tensor = mlp.down_proj(swiglu(mlp.gate_proj(x), mlp.up_proj(x)))
    return y


def _rotary(original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Queries, keys, cosines and sines as most sources pass them; any other call stays the source's own."""
    if current_pass() is None or named or len(arguments) != 4 or not fits(arguments[0], arguments[2]):
        return original(*arguments, **named)
    q, k, cos, sin = arguments
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return rotate(q, cos, sin), rotate(k, cos, sin)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return rms_norm(x, norm.weight, norm.variance_epsilon)


def _each_picture_once(original: Callable[..., Any], pictures: Tensor, *arguments: Any, **named: Any) -> Any:
    this = current_pass()
    if this is None:
        return original(pictures, *arguments, **named)
    width = this.adapter_batch.width
    by_run = pictures.view(width, -1, *pictures.shape[1:])
    distinct, places = this.batch.distinct_rows(by_run[0])
    if len(distinct) == by_run.shape[1]:
        return original(pictures, *arguments, **named)
    rows = width * len(distinct)
    output = original(by_run.index_select(1, distinct).flatten(0, 1), *arguments, **named)
    runs = 1 if this.adapter_batch.frozen_me else width
    back = (torch.arange(runs, device=places.device)[:, None] * len(distinct) + places[None]).flatten()
    for name, value in output.items():
        output[name] = _put_back(value, back, {rows, len(distinct) * runs})
    return output


def _put_back(value: Any, back: Tensor, rows: set[int]) -> Any:
    if isinstance(value, tuple):
        return tuple(_put_back(part, back, rows) for part in value)
    return value.index_select(0, back) if isinstance(value, Tensor) and value.shape[0] in rows else value


def _vision_block(
    first: bool, entry_layers: int, original: Callable[..., Any], hidden: Tensor, *arguments: Any, **named: Any
) -> Any:
    """A block of a frozen encoder sees the rows of one run; the projector's entry layers read them for all."""
    this = current_pass()
    if this is None or not this.adapter_batch.frozen_me:
        return original(hidden, *arguments, **named)
    width = this.adapter_batch.width
    hidden = hidden[: hidden.shape[0] // width] if first else hidden
    if len(this.batch.features) == entry_layers:
        return hidden  # nobody reads it: every entry layer has its features already
    rows = hidden.shape[0] * width
    share = partial(_share_of_one, rows=rows, width=width)
    return original(hidden, *map(share, arguments), **{name: share(value) for name, value in named.items()})


def _share_of_one(value: Any, *, rows: int, width: int) -> Any:
    """The first run's part of what comes with `rows` rows: a value per row, or where its sequences begin and end."""
    if isinstance(value, tuple):
        return tuple(_share_of_one(part, rows=rows, width=width) for part in value)
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if value.shape[0] == rows:
        return value[: rows // width]
    begins_and_ends = value.dim() == 1 and not value.is_floating_point() and int(value[-1]) == rows
    return value[: (len(value) - 1) // width + 1] if begins_and_ends else value


def vision_blocks(model: nn.Module, partition: Partition) -> list[nn.Module]:
    """The vision tower's repeated blocks: the outermost list elements that hold linear layers of the ME."""
    path = re.compile(re.escape(partition.family.me) + r"\.(?:[^.]+\.)*?\d+(?=\.)")
    names = dict.fromkeys(found[0] for layer in partition.me if (found := path.match(layer.name)))
    return [model.get_submodule(name) for name in names]


def _once_for_all(original: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    this = current_pass()
    if this is None or this.adapter_batch.width == 1:
        return original(x)
    y = original(x[: x.shape[0] // this.adapter_batch.width])
    return y.repeat(this.adapter_batch.width, *[1] * (y.dim() - 1))


def _gather_answers(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    this = current_pass()
    if this is None:
        return None
    hidden, *rest = arguments
    by_run = hidden.reshape(this.adapter_batch.width, -1, hidden.shape[-1])
    return (by_run.index_select(1, this.batch.answer_rows), *rest)


def _drop_padding(_: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, Any] | None:
    this = current_pass()
    if this is None:
        return None
    mask = this.batch.mask.repeat(this.adapter_batch.width, 1)
    named = {**named, "position_ids": _positions(named.get("position_ids"), mask)}
    kept = mask.flatten().nonzero()[:, 0]
    flat = {name: _real_tokens(value, mask.shape, kept) for name, value in named.items()}
    return arguments, flat | {"attention_mask": None}  # the attention function knows the sequences


def _positions(given: Tensor | None, mask: Tensor) -> Tensor:
    """Positions of every row: counted where none are given, repeated where one row of them stands for all."""
    if given is None:
        return (mask.cumsum(dim=1) - 1).clamp(min=0)
    return given.expand(*given.shape[:-2], *mask.shape)


def _real_tokens(value: Any, shape: torch.Size, kept: Tensor) -> Any:
    """Rows (rows, length, ...) or (k, rows, length, ...) become (1, tokens, ...) or (k, 1, tokens, ...)."""
    if not isinstance(value, Tensor):
        return value
    for first in (0, 1):
        if value.shape[first : first + 2] == shape:
            return value.flatten(first, first + 1).index_select(first, kept).unsqueeze(first)
    return value
