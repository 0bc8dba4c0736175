"""The pair of LoRA ranks that everything here is about, and ranks of single layers that share out what it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple


class RankPair(NamedTuple):
    """LoRA ranks of the vision encoder and of the LLM; 0 means no adapter there. Equal to the plain tuple."""

    r_me: int
    r_llm: int

    def __str__(self) -> str:
        return f"({self.r_me}, {self.r_llm})"

    @property
    def slug(self) -> str:
        """The pair as a folder name, for example `me8-llm16`."""
        return f"me{self.r_me}-llm{self.r_llm}"

    def rank(self, group: str) -> int:
        """Rank of one group of layers (`me`, `projector` or `llm`); the projector follows the LLM."""
        return self.r_me if group == "me" else self.r_llm


class LayerRanks(NamedTuple):
    """LoRA rank of single layers: (path, rank), by path; a layer that is not named has no adapter."""

    by_layer: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, ranks: Mapping[str, int]) -> LayerRanks:
        """Those of a mapping from the layers' paths; rank 0 is no adapter."""
        return cls(tuple(sorted((name, int(rank)) for name, rank in ranks.items() if rank)))

    def __str__(self) -> str:
        ranks = [rank for _, rank in self.by_layer]
        return f"ranks {min(ranks, default=0)} to {max(ranks, default=0)} over {len(ranks)} layers"


Ranks = RankPair | LayerRanks
"""A rank for each module, or one for each layer."""


AlphaRule = Literal["2r", "sqrt"] | float
"""How LoRA's alpha follows from the rank: twice it (the paper), with its root (rsLoRA), or one number for all ranks."""


class AlphaRules(NamedTuple):
    """A rule for the layers of each module."""

    me: AlphaRule
    projector: AlphaRule
    llm: AlphaRule


Alpha = AlphaRule | AlphaRules
"""One rule for all modules, or one for each."""


def rule_of(alpha: Alpha, group: str) -> AlphaRule:
    """The rule of one group of layers (`me`, `projector` or `llm`)."""
    if isinstance(alpha, AlphaRules):
        rule: AlphaRule = getattr(alpha, group)
        return rule
    return alpha


SQRT_ALPHA = 8.0  # alpha = 8 sqrt(r): at rank 16 the scale is that of 2r


def lora_alpha(rule: AlphaRule, rank: int) -> float:
    """LoRA's alpha of a rank; an adapter's product is scaled by alpha / r.

    `sqrt` writes rsLoRA's scale (Kalajdzievski 2023: constant / sqrt(r)) as an alpha, so that whoever reads alpha and
    rank computes the same.
    """
    if rule == "2r":
        return 2 * rank
    if rule == "sqrt":
        return SQRT_ALPHA * math.sqrt(rank)
    return int(rule) if float(rule).is_integer() else rule


def lora_scale(rule: AlphaRule, rank: int) -> float:
    """What an adapter's product is multiplied by: alpha / r."""
    return lora_alpha(rule, rank) / rank


Pair = tuple[int, int]
"""A rank pair as callers of the search may give it: a `RankPair` or a plain (r_me, r_llm)."""


class RankGrid(NamedTuple):
    """Ranks of either module, each in increasing order; 0 is no adapter there."""

    me: tuple[int, ...]
    llm: tuple[int, ...]

    @property
    def pairs(self) -> list[RankPair]:
        """Every pair that adapts something."""
        return [RankPair(r_me, r_llm) for r_me in self.me for r_llm in self.llm if r_me or r_llm]

    @property
    def reference(self) -> RankPair:
        """The uniform default: the lower middle of the positive ranks that both modules have, 16 of 8, 16, 32, 64.

        Where they share none, the lower middle of each.
        """
        shared = [rank for rank in self.me if rank > 0 and rank in self.llm]
        me, llm = ([rank for rank in shared or own if rank > 0] for own in self)
        return RankPair(me[(len(me) - 1) // 2], llm[(len(llm) - 1) // 2])
