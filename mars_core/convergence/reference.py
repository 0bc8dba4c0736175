"""The reference pair: where the slices cross."""

from collections.abc import Iterable


def lower_middle(ranks: Iterable[int]) -> int:
    """The lower middle of the distinct positive ranks: 16 for {8, 16, 32, 64}."""
    positive = sorted({rank for rank in ranks if rank > 0})
    if not positive:
        raise ValueError("expected at least one positive rank, got none: give the calibration runs adapters.")
    return positive[(len(positive) - 1) // 2]


def reference_pair(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """(r_me, r_llm) at the lower middle of each module's ranks among pairs where both modules have adapters."""
    adapted = [(r_me, r_llm) for r_me, r_llm in pairs if r_me > 0 and r_llm > 0]
    if not adapted:
        raise ValueError(
            "no pair with both ranks positive, so there is no reference pair: "
            "calibrate pairs of positive ranks, or use the isolated signal."
        )
    return lower_middle(r_me for r_me, _ in adapted), lower_middle(r_llm for _, r_llm in adapted)
