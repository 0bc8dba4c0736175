"""Partition of a model's linear layers into ME, projector and LLM."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from mars_core.models.families import Family
from mars_core.ranks import RankPair

Group = Literal["me", "projector", "llm"]
GROUPS: tuple[Group, ...] = ("me", "projector", "llm")
WHERE = "in the study file's `family` section or, for a model that MARS knows, in mars_core/models/families.py"


@dataclass(frozen=True)
class LinearLayer:
    """One adaptable linear layer: full module path, `in_features`, `out_features`."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Partition:
    """A model's linear layers by group, and which of them LoRA adapts; heads and embeddings belong to no group.

    me, projector, llm: all linear layers of each. excluded: linear layers left out (output heads, layers that the
    forward pass never uses). family: where the groups were looked for. adapted: paths of the layers that are adapted,
    None for all. projector_rank: LoRA rank of the projector, None where it follows the LLM's.
    """

    me: tuple[LinearLayer, ...]
    projector: tuple[LinearLayer, ...]
    llm: tuple[LinearLayer, ...]
    excluded: tuple[str, ...]
    family: Family
    adapted: frozenset[str] | None = None
    projector_rank: int | None = None

    def every(self, name: Group) -> tuple[LinearLayer, ...]:
        """All linear layers of one group."""
        layers: tuple[LinearLayer, ...] = getattr(self, name)
        return layers

    def group(self, name: Group) -> tuple[LinearLayer, ...]:
        """The layers of one group that are adapted."""
        layers = self.every(name)
        return layers if self.adapted is None else tuple(layer for layer in layers if layer.name in self.adapted)

    def rank(self, pair: RankPair, name: Group) -> int:
        """LoRA rank of a group's layers under a pair."""
        if name == "projector" and self.projector_rank is not None:
            return self.projector_rank
        return pair.rank(name)

    def parameters_per_rank(self, name: Group) -> int:
        """LoRA parameters that one unit of rank adds in a group: the sum of in + out features."""
        return sum(layer.in_features + layer.out_features for layer in self.group(name))

    def largest_rank(self, name: Group) -> int:
        """The smallest width in a group, 0 if it is empty: a LoRA rank above it would exceed some layer's own rank."""
        return min((min(layer.in_features, layer.out_features) for layer in self.group(name)), default=0)


def partition_of(model: nn.Module, family: Family) -> Partition:
    """Assign every linear layer of `model` to exactly one group, or to the excluded ones.

    Raises:
        ValueError: the model has no module at one of the family's paths, the ME or the LLM has no linear layer, or a
            linear layer outside the output head belongs to no group.
    """
    _check_paths(model, family)
    unused = [re.compile(pattern) for pattern in family.unused]
    head = _output_head_names(model)
    groups: dict[Group, list[LinearLayer]] = {"me": [], "projector": [], "llm": []}
    excluded, unclaimed = [], []
    for name, layer in _linear_layers(model):
        group = _group_of(name, family)
        if name in head or any(pattern.fullmatch(name) for pattern in unused):
            excluded.append(name)
        elif group is None:
            unclaimed.append(name)
        else:
            groups[group].append(LinearLayer(name, layer.in_features, layer.out_features))
    _check_groups(groups, unclaimed, family)
    return Partition(tuple(groups["me"]), tuple(groups["projector"]), tuple(groups["llm"]), tuple(excluded), family)


@dataclass(frozen=True)
class OtherWeights:
    """Weights of one kind, inside ME, projector or LLM, that no adapter goes on: how many tensors and parameters."""

    kind: str
    tensors: int
    parameters: int


def other_weights(model: nn.Module, family: Family) -> list[OtherWeights]:
    """What is multiplied with in the modules but is no linear layer: convolutions, and experts in one tensor."""
    found: dict[str, list[int]] = {"convolutions": [], "stacked weights of experts": []}
    for name, module in model.named_modules():
        if _group_of(name, family) is None:
            continue
        if isinstance(module, _CONVOLUTIONS):
            found["convolutions"].append(module.weight.numel())
        else:
            found["stacked weights of experts"] += [
                weight.numel() for weight in module.parameters(recurse=False) if _is_stacked(weight)
            ]
    return [OtherWeights(kind, len(sizes), sum(sizes)) for kind, sizes in found.items() if sizes]


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _is_stacked(weight: nn.Parameter) -> bool:
    return weight.dim() == 3 and min(weight.shape) > 1  # learned tokens and positions have a first dimension of 1


def layers_used_by_forward(model: nn.Module, batch: Mapping[str, Any]) -> set[str]:
    """Names of the linear layers whose output reaches the logits of one forward pass of `batch`.

    A layer can be called for nothing (SigLIP computes its pooled output even where only patch features are
    read), so each layer's output gets a zero added, and the logits are asked which zeros they depend on.
    """
    zeros: dict[str, torch.Tensor] = {}

    def add_zero(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
            if not isinstance(output, torch.Tensor):
                return output  # a router of a mixture of experts
            if name not in zeros:
                zeros[name] = output.new_zeros((), requires_grad=True)
            return output + zeros[name]

        return hook

    handles = [layer.register_forward_hook(add_zero(name)) for name, layer in _linear_layers(model)]
    try:
        with torch.enable_grad():
            logits = model(**batch).logits
    finally:
        for handle in handles:
            handle.remove()
    gradients = torch.autograd.grad(logits.float().sum(), tuple(zeros.values()), allow_unused=True)
    return {name for name, gradient in zip(zeros, gradients, strict=True) if gradient is not None}


def check_against_forward(partition: Partition, used: set[str]) -> None:
    """Hold a partition against what a forward pass really used.

    Raises:
        ValueError: a layer of a group has no part in the logits, so an adapter on it would learn nothing.
    """
    idle = [layer.name for group in GROUPS for layer in partition.group(group) if layer.name not in used]
    if idle:
        raise ValueError(
            f"{len(idle)} linear layers in the partition have no part in the forward pass's logits "
            f"(first: {idle[0]}): add a pattern for them to `unused`, {WHERE}"
        )


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module


def _output_head_names(model: nn.Module) -> set[str]:
    head = model.get_output_embeddings()  # type: ignore[operator]
    return {name for name, module in model.named_modules() if module is head}


def _group_of(name: str, family: Family) -> Group | None:
    """The group of the longest path that holds the layer: Qwen's projector lies inside the vision tower, and two towers
    are named by what holds them both."""
    paths: list[tuple[str, Group]] = [(path, "projector") for path in family.projector]
    paths += [(family.me, "me"), (family.llm, "llm")]
    holding = [(len(path), group) for path, group in paths if _is_below(name, path)]
    return max(holding, key=lambda one: one[0])[1] if holding else None


def _is_below(name: str, path: str) -> bool:
    return name == path or name.startswith(path + ".")


def _check_paths(model: nn.Module, family: Family) -> None:
    known = dict(model.named_modules())
    missing = [path for path in (family.me, *family.projector, family.llm) if path not in known]
    if missing:
        near = [path for path in known if path and path.count(".") < 3]
        raise ValueError(
            f"the model has no module {missing[0]!r}: correct the path, {WHERE}. Its outer modules are "
            f"{', '.join(near[:12])}"
        )


def _check_groups(groups: dict[Group, list[LinearLayer]], unclaimed: list[str], family: Family) -> None:
    if unclaimed:
        raise ValueError(
            f"{len(unclaimed)} linear layers belong to neither ME, projector, LLM nor output head "
            f"(first: {unclaimed[0]}): correct the module paths, {WHERE}"
        )
    for group, path in (("me", family.me), ("llm", family.llm)):
        if not groups[group]:  # type: ignore[index]
            label = "modality encoder" if group == "me" else "LLM"
            raise ValueError(
                f"the {label} ({path}) has no linear layers, so LoRA has nothing to adapt there: "
                "choose a model with linear layers in both modules"
            )
