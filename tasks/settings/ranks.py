"""Ranks as a study file gives them: one list for both modules, or one of each."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from mars_core.ranks import RankGrid
from tasks.settings.section import BOTH, EACH, Rank, Section


class ModuleRanks(Section):
    """Ranks of each module."""

    me: tuple[Rank, ...] = Field(description="Of the vision encoder; 0 is no adapter there")
    llm: tuple[Rank, ...] = Field(description="Of the language model and the projector; 0 is no adapter there")


Ranks = Annotated[
    Annotated[tuple[Rank, ...], Tag(BOTH)] | Annotated[ModuleRanks, Tag(EACH)],
    Discriminator(lambda value: EACH if isinstance(value, dict | ModuleRanks) else BOTH),
]
"""One list for both modules, or a mapping of `me` and `llm`."""


def rank_grid(ranks: tuple[int, ...] | ModuleRanks) -> RankGrid:
    """Ranks of both modules, in increasing order.

    Raises:
        ValueError: a rank stands twice, or a module has none above 0.
    """
    given = (ranks.me, ranks.llm) if isinstance(ranks, ModuleRanks) else (ranks, ranks)
    for own in given:
        if len(set(own)) != len(own):
            raise ValueError(f"ranks must not repeat, got {list(own)}")
        if not any(own):
            raise ValueError(f"each module needs a rank above 0, got {list(own)}")
    return RankGrid(*(tuple(sorted(own)) for own in given))
