"""Find out, on a real batch, what a model's forward pass allows to leave out.

Nothing here is taken from the name of a model: each saving is tried, and used only where it changes no result.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mars_core.evaluation.answer_loss import answer_logits
from mars_core.models.partition import Partition
from mars_core.packing.adapter_batch import AdapterBatch, Pass, make_adapter_batch
from mars_core.packing.adapters import layout_of
from mars_core.packing.batch import PackedBatch, pack_batch
from mars_core.packing.flat_buffers import zero_vectors
from mars_core.packing.forward import adapter_batch_logits
from mars_core.packing.kernels.norm import rms_norm
from mars_core.packing.kernels.rotary import FUNCTION, rotate
from mars_core.packing.kernels.swiglu import swiglu
from mars_core.packing.patching import Structure, patched
from mars_core.ranks import RankPair

# Logits of the same pass with sums in another order: several units in the last place per layer.
LOGIT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}

_EXAMINED: WeakKeyDictionary[nn.Module, dict[Hashable, Structure]] = WeakKeyDictionary()


def examined(model: nn.Module, partition: Partition, batch: Mapping[str, Tensor]) -> Structure:
    """What `examine` finds; the same model is not asked twice about a batch with the same content.

    A calibration examines its model for its forecast, for its adapter batches and for every pack, on one batch of each
    split.
    """
    known = _EXAMINED.setdefault(model, {})
    key = (partition, _state_of(model), _content_of(batch))
    if key not in known:
        known[key] = examine(model, partition, batch)
    return known[key]


def _state_of(model: nn.Module) -> Hashable:
    """Changes with the weights, with where they are, and with a forward pass put in the place of a module's own."""
    weights = (
        (name, weight.data_ptr(), weight.dtype, str(weight.device), 0 if weight.is_inference() else weight._version)
        for name, weight in model.state_dict(keep_vars=True).items()
    )
    # By number: accelerate's replacements hold the model, which would then never be let go.
    replaced = (
        (name, id(vars(module)["forward"])) for name, module in model.named_modules() if "forward" in vars(module)
    )
    attention = tuple(getattr(module.config, "_attn_implementation", None) for module in _configured(model))
    return tuple(weights), tuple(replaced), attention


def _configured(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if hasattr(module, "config"))


def _content_of(batch: Mapping[str, Tensor]) -> Hashable:
    content = blake2b()
    for name, tensor in sorted(batch.items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device}".encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def examine(model: nn.Module, partition: Partition, batch: Mapping[str, Tensor]) -> Structure:
    """Try every saving on `batch`, which should hold an image and several sequences of unequal length."""
    was_training = model.training
    model.eval()
    try:
        structure = Structure(unpadded=_works_unpadded(model, partition, batch))
        if not _runs_stay_apart(model, partition, structure, batch):
            return replace(structure, side_by_side=False)
        packed = pack_batch(batch, unpadded=structure.unpadded)
        convolutions = [
            name for name, module in _below(model, partition.family.me) if isinstance(module, _CONVOLUTIONS)
        ]
        shared = _same_for_all(model, partition, structure, packed, RankPair(1, 1), convolutions)
        projector = [layer.name for layer in partition.group("projector")]
        entry_layers = _same_for_all(model, partition, structure, packed, RankPair(0, 1), projector)
        answers_only = _answers_only(model, partition, structure, packed)
        tails = _answer_tails(model, partition, structure, answers_only, batch)
        structure = replace(
            structure,
            shared=shared,
            answers_only=frozenset(name for name in answers_only if not _inside(name, tails)),
            answer_tails=tails,
        )
        structure = _with_fewer_passes(model, partition, structure, batch)
        with_entry_layers = replace(structure, projector_entry_layers=entry_layers)
        if _encoder_can_be_shared(model, partition, with_entry_layers, batch):
            structure = with_entry_layers
        distinct = _pictures_can_be_seen_once(model, partition, structure, batch)
        return replace(structure, distinct_pictures=distinct)
    finally:
        model.train(was_training)


@torch.no_grad()
def _named(model: nn.Module, is_one: Callable[[Any], bool]) -> frozenset[str]:
    return frozenset(name for name, module in model.named_modules() if is_one(module))


def _is_rms_norm(module: Any) -> bool:
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(epsilon, float):
        return False
    if weight.dtype == torch.float64:
        return False  # the norm's inside is fp32 all the same, and would be all the rounding there is
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((4, len(weight)), generator=generator).to(device=weight.device, dtype=weight.dtype)
    exact = torch.finfo(weight.dtype).bits >= 32
    return torch.allclose(rms_norm(x, weight, epsilon), module(x), rtol=1e-6 if exact else 1e-2, atol=1e-6)


def _is_silu_gated(module: Any) -> bool:
    """Whether a module computes down(silu(gate(x)) * up(x)), to the last bits."""
    gate, up, down = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    if not (isinstance(gate, nn.Linear) and isinstance(up, nn.Linear) and isinstance(down, nn.Linear)):
        return False
    if not gate.weight.is_floating_point():  # a quantized one, whose dtype tells nothing
        return False
    x = _random_rows(gate.in_features, gate.weight)
    return _near(down(swiglu(gate(x), up(x))), module(x))


def _random_rows(width: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((1, 6, width), generator=generator).to(device=like.device, dtype=like.dtype)


def _near(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    exact = torch.finfo(expected.dtype).bits >= 32
    scale = float(expected.abs().max())
    return torch.allclose(found, expected, rtol=1e-5 if exact else 2e-2, atol=scale * (1e-6 if exact else 1e-2))


@torch.no_grad()
def _rotary_sources(language_model: nn.Module) -> frozenset[str]:
    """Source modules of the language model whose function for rotary embeddings is `rotate` of both arguments."""
    sources = {type(module).__module__ for module in language_model.modules()}
    return frozenset(source for source in sources if _rotates(getattr(sys.modules[source], FUNCTION, None)))


def _rotates(function: Any) -> bool:
    if function is None:
        return False
    generator = torch.Generator().manual_seed(0)
    q, k, cos, sin = (
        torch.randn(shape, generator=generator) for shape in ((1, 4, 5, 8), (1, 2, 5, 8), *[(1, 5, 8)] * 2)
    )
    table = cos.unsqueeze(1), sin.unsqueeze(1)
    try:
        first, second = function(q, k, cos, sin)
        return _near(rotate(q, *table), first) and _near(rotate(k, *table), second)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False  # another kind of embedding under this name


@torch.no_grad()
def _with_fewer_passes(
    model: nn.Module, partition: Partition, structure: Structure, batch: Mapping[str, Tensor]
) -> Structure:
    """Norms, gates and rotary embeddings in our spelling, if the logits of the whole model stay the same with them."""
    spelled = replace(
        structure,
        norms=_named(model, _is_rms_norm),
        gates=_named(model, _is_silu_gated),
        rotary=_rotary_sources(model.get_submodule(partition.family.llm)),
    )
    adapter_batch = _random_adapter_batch(model, partition, RankPair(1, 1))
    found, expected = (_logits(model, partition, tried, adapter_batch, batch) for tried in (spelled, structure))
    return spelled if _close(found, expected) else structure


@torch.no_grad()
def _answer_tails(
    model: nn.Module,
    partition: Partition,
    structure: Structure,
    answers_only: frozenset[str],
    batch: Mapping[str, Tensor],
) -> frozenset[str]:
    """Modules of the last block that work row by row and all of whose linear layers are read at answer rows alone."""
    block = _last_block(partition)
    parents = {name.rpartition(".")[0] for name in answers_only}
    whole = {parent for parent in parents if all(name in answers_only for name in block if _inside(name, {parent}))}
    tails = frozenset(name for name in whole if _row_by_row(model.get_submodule(name)))
    adapter_batch = _random_adapter_batch(model, partition, RankPair(1, 1))
    tried = replace(structure, answer_tails=tails)
    found, expected = (_logits(model, partition, one, adapter_batch, batch) for one in (tried, structure))
    return tails if _close(found, expected) else frozenset()


def _inside(name: str, modules: Collection[str]) -> bool:
    return name.rpartition(".")[0] in modules


@torch.no_grad()
def _row_by_row(module: Any) -> bool:
    linear = next(layer for layer in module.modules() if isinstance(layer, nn.Linear))
    if not linear.weight.is_floating_point():
        return False
    x = _random_rows(linear.in_features, linear.weight)
    rows = torch.tensor([1, 4], device=x.device)
    try:
        every, some = module(x), module(x.index_select(1, rows))
    except (RuntimeError, TypeError, ValueError):
        return False  # it reads more than its rows
    return isinstance(every, Tensor) and every.shape[:2] == x.shape[:2] and _near(some, every.index_select(1, rows))


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _below(model: nn.Module, path: str) -> Iterable[tuple[str, nn.Module]]:
    return ((f"{path}.{name}", module) for name, module in model.get_submodule(path).named_modules() if name)


def _plain_adapter_batch(model: nn.Module) -> AdapterBatch:
    device = next(model.parameters()).device
    return AdapterBatch(1, {}, False, torch.zeros((), device=device, requires_grad=True))


@torch.no_grad()
def _works_unpadded(model: nn.Module, partition: Partition, batch: Mapping[str, Tensor]) -> bool:
    expected, _ = answer_logits(model, batch)
    this = Pass(_plain_adapter_batch(model), pack_batch(batch, unpadded=True))

    def unpadded() -> Tensor:
        with patched(model, partition, Structure(unpadded=True)):
            return adapter_batch_logits(model, this)[0]

    # It fails under attention of another kind, or with arguments of another shape: then padding stays.
    return _gives(unpadded, expected)


def _gives(tried: Callable[[], Tensor], expected: Tensor) -> bool:
    """Whether a pass that a model may not be made for works, and gives the expected logits."""
    try:
        return _close(tried(), expected)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False


@torch.no_grad()
def _runs_stay_apart(model: nn.Module, partition: Partition, structure: Structure, batch: Mapping[str, Tensor]) -> bool:
    """Whether two unlike runs in one forward pass get the logits that each gets alone."""
    for pair in (RankPair(1, 1), RankPair(0, 1)):
        alone = [_random_adapter_batch(model, partition, pair, runs=(run,)) for run in range(2)]
        expected = torch.cat([_logits(model, partition, structure, one, batch) for one in alone])
        together = _random_adapter_batch(model, partition, pair)
        if not _gives(partial(_logits, model, partition, structure, together, batch), expected):
            return False
    return True


@torch.no_grad()
def _same_for_all(
    model: nn.Module,
    partition: Partition,
    structure: Structure,
    batch: PackedBatch,
    pair: RankPair,
    names: list[str],
) -> frozenset[str]:
    """Those modules whose input is the same for two runs with unlike adapters of `pair`, and that are called."""
    same: dict[str, bool] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            halves = arguments[0].chunk(2)
            same[name] = len(halves) == 2 and halves[0].shape == halves[1].shape and torch.equal(*halves)

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
    adapter_batch = replace(_random_adapter_batch(model, partition, pair), frozen_me=False)
    try:
        with patched(model, partition, structure):
            adapter_batch_logits(model, Pass(adapter_batch, batch))
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(name for name, is_same in same.items() if is_same)


@torch.no_grad()
def _encoder_can_be_shared(
    model: nn.Module, partition: Partition, structure: Structure, batch: Mapping[str, Tensor]
) -> bool:
    """Whether runs without vision adapters get the same logits from features that were computed once, and kept."""
    if not structure.projector_entry_layers:
        return False
    adapter_batch = _random_adapter_batch(model, partition, RankPair(0, 1))
    packed = pack_batch(batch, unpadded=structure.unpadded)
    with patched(model, partition, structure):
        expected = adapter_batch_logits(model, Pass(replace(adapter_batch, frozen_me=False), packed))
        # It fails where something between the blocks and the projector counts rows.
        shared = partial(adapter_batch_logits, model, Pass(adapter_batch, packed))
        return all(_gives(shared, expected) for _ in range(2))


@torch.no_grad()
def _pictures_can_be_seen_once(
    model: nn.Module, partition: Partition, structure: Structure, batch: Mapping[str, Tensor]
) -> bool:
    """Whether equal pictures, seen once, give the same logits, with and without vision adapters."""
    pictures = batch.get("pixel_values")
    if pictures is None or len(pictures) < 2 or pictures[0].dim() < 3:
        return False  # patches of a picture see each other, so rows of patches cannot be taken apart
    changed = pictures.clone()
    changed[1] = changed[0]
    for pair in (RankPair(1, 1), RankPair(0, 1)):
        adapter_batch = _random_adapter_batch(model, partition, pair)
        inputs = dict(batch) | {"pixel_values": changed}
        expected = _logits(model, partition, structure, adapter_batch, inputs)
        once = replace(structure, distinct_pictures=True)
        if not _gives(partial(_logits, model, partition, once, adapter_batch, inputs), expected):
            return False
    return True


def _logits(
    model: nn.Module,
    partition: Partition,
    structure: Structure,
    adapter_batch: AdapterBatch,
    batch: Mapping[str, Tensor],
) -> Tensor:
    with patched(model, partition, structure):
        return adapter_batch_logits(model, Pass(adapter_batch, pack_batch(batch, unpadded=structure.unpadded)))


def _close(found: Tensor, expected: Tensor) -> bool:
    largest = float((found - expected).abs().max())
    return largest <= LOGIT_TOLERANCE[expected.dtype] * max(1.0, float(expected.abs().max()))


def _random_adapter_batch(
    model: nn.Module, partition: Partition, pair: RankPair, runs: Sequence[int] = (0, 1)
) -> AdapterBatch:
    """An adapter batch of those of two unlike runs."""
    parameter = next(model.parameters())
    layouts = [layout_of(partition, pair)] * 2
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    weights, gradients = (zero_vectors(layouts, parameter.device, dtype) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for vectors in weights:
        for vector in vectors.values():
            vector.copy_(torch.randn(vector.shape, generator=generator, dtype=dtype) * 0.1)
    return make_adapter_batch(
        [layouts[run] for run in runs], [weights[run] for run in runs], [gradients[run] for run in runs]
    )


def _answers_only(model: nn.Module, partition: Partition, structure: Structure, batch: PackedBatch) -> frozenset[str]:
    """Layers of the language model's last block whose output reaches the answers' logits from the answer rows alone."""
    zeros: dict[str, Tensor] = {}
    names = _last_block(partition)
    if not names:
        return frozenset()
    with patched(model, partition, structure), _zeros_added(model, names, zeros), torch.enable_grad():
        logits = adapter_batch_logits(model, Pass(_plain_adapter_batch(model), batch)).float()
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits.device)
        gradients = torch.autograd.grad((logits * weights).sum(), tuple(zeros.values()), allow_unused=True)
    found = dict(zip(zeros, gradients, strict=True))
    return frozenset(name for name, gradient in found.items() if _only_at(gradient, batch.answer_rows))


def _only_at(gradient: Tensor | None, rows: Tensor) -> bool:
    if gradient is None:
        return False
    reached = gradient.flatten(0, -2).any(dim=-1).nonzero()[:, 0]
    return bool(torch.isin(reached, rows).all()) and gradient.shape[:-1].numel() > len(rows)


def _last_block(partition: Partition) -> list[str]:
    """Layers of the highest number in the list of blocks that holds most of the language model's layers."""
    block = re.compile(r"(.*?\.)(\d+)\.")
    numbered = [(found[1], int(found[2]), layer.name) for layer in partition.llm if (found := block.match(layer.name))]
    if not numbered:
        return []
    blocks = Counter(path for path, _, _ in numbered).most_common(1)[0][0]
    last = max(number for path, number, _ in numbered if path == blocks)
    return [name for path, number, name in numbered if (path, number) == (blocks, last)]


@contextmanager
def _zeros_added(model: nn.Module, names: list[str], zeros: dict[str, Tensor]) -> Iterator[None]:
    def add(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            zeros[name] = torch.zeros_like(output, requires_grad=True)
            return output + zeros[name]

        return hook

    handles = [model.get_submodule(name).register_forward_hook(add(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
