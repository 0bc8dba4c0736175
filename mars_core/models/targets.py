"""Which linear layers are adapted: all of them, attention alone, or those that regular expressions name.

A choice narrows the partition once, so that parameter counts, identities, forecasts and exports all follow.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

from mars_core.models.partition import GROUPS, Group, LinearLayer, Partition


class Patterns(NamedTuple):
    """A regular expression for the paths of each group's layers, searched for anywhere in them; None for all layers."""

    me: str | None = None
    projector: str | None = None
    llm: str | None = None


Targets = Literal["all", "attention"] | Patterns

# The names of transformers and of the checkpoints' own code: modules such as self_attn, attn, attention, linear_attn;
# and projections to and from queries, keys and values that stand beside other layers.
_ATTENTION_MODULE = re.compile(r"(^|\.)([a-z]+_)*(attn|attention)\.")
_ATTENTION_LAYER = re.compile(
    r"\.([qkvo]_proj|out_proj|qkv|qkv_proj|in_proj_qkv|w[qkvo]|wqkv|query|key|value|query_key_value)$"
)


def adapting(partition: Partition, targets: Targets, projector_rank: int | None = None) -> Partition:
    """The partition with only those layers adapted, and a rank of the projector's own where it is not None.

    Raises:
        ValueError: a pattern is no regular expression or matches no layer, or no attention is found in ME or LLM.
    """
    chosen = {group: _chosen(partition, targets, group) for group in GROUPS}
    if projector_rank == 0:
        chosen["projector"] = ()
    if all(chosen[group] == partition.every(group) for group in GROUPS):
        return replace(partition, adapted=None, projector_rank=projector_rank)
    names = frozenset(layer.name for layers in chosen.values() for layer in layers)
    return replace(partition, adapted=names, projector_rank=projector_rank)


def _chosen(partition: Partition, targets: Targets, group: Group) -> tuple[LinearLayer, ...]:
    layers = partition.every(group)
    if targets == "all":
        return layers
    if targets == "attention":
        return _attention(layers, group)
    pattern: str | None = getattr(targets, group)
    return layers if pattern is None else _matching(layers, group, pattern)


def _attention(layers: tuple[LinearLayer, ...], group: Group) -> tuple[LinearLayer, ...]:
    found = _those(layers, lambda name: bool(_ATTENTION_MODULE.search(name) or _ATTENTION_LAYER.search(name)))
    if not found and group != "projector":  # most projectors have none
        raise ValueError(
            f"recipe.targets: attention finds none in the {group}, whose layers are {_examples(layers)}: name the "
            f"layers by a regular expression, recipe.targets.{group}"
        )
    return found


def _matching(layers: tuple[LinearLayer, ...], group: Group, pattern: str) -> tuple[LinearLayer, ...]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"recipe.targets.{group}: {pattern!r} is no regular expression ({error})") from error
    found = _those(layers, lambda name: bool(compiled.search(name)))
    if not found:
        raise ValueError(
            f"recipe.targets.{group}: {pattern!r} matches none of its {len(layers)} linear layers"
            + (f", such as {_examples(layers)}" if layers else "")
        )
    return found


def _those(layers: tuple[LinearLayer, ...], wanted: Callable[[str], bool]) -> tuple[LinearLayer, ...]:
    return tuple(layer for layer in layers if wanted(layer.name))


def _examples(layers: tuple[LinearLayer, ...]) -> str:
    # One of each kind: blocks repeat the same names.
    kinds = {re.sub(r"\.\d+\.", ".N.", layer.name): layer.name for layer in reversed(layers)}
    return ", ".join(list(reversed(kinds.values()))[:8])
