"""The pair of LoRA ranks that everything here is about."""

from __future__ import annotations

from typing import NamedTuple


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


Pair = tuple[int, int]
"""A rank pair as callers of the search may give it: a `RankPair` or a plain (r_me, r_llm)."""
