"""HyDRA's coarse-grained ranks: one per stage (Eq. 5 to 8), raised by the iteration of the text.

The text raises R_1 by 1 and stops before N_remain < 0 or R_t <= R_{t-1}. Its published example (24 layers in stages of
8, 4 and 12, R_standard 128, step 2) starts at (104, 106, 151) and ends at (124, 126, 131). That is reached by raising
R_1 by the step and stopping before Eq. 5 breaks, R_t >= R_{t-1} + step, and in no other way: by 1 it would end at
(125, 127, 130), without Eq. 5 at (126, 128, 129). So it is done here (docs/decisions/0030-hydras-iteration.md).
"""

from __future__ import annotations

from collections.abc import Sequence

STAGES, STEP = 3, 2


def first_rank(standard: int, blocks: int) -> int:
    """R_1 to start from (Eq. 7), 1 where that is not positive.

    Args:
        standard: R_standard, the uniform rank.
        blocks: N_l; the adjustment factor is (N_l - 1) / 2.
    """
    return max(1, 2 * ((standard - (blocks - 1)) // 2))


def coarse_ranks(
    sizes: Sequence[int], standard: int, step: int = STEP, increment: int | None = None
) -> tuple[int, ...]:
    """The rank of each stage.

    Args:
        sizes: Blocks of each stage, the stage with the smallest gradient norms first.
        standard: R_standard; N_R, the ranks of all blocks together, is at most R_standard * N_l (Eq. 6).
        step: Delta d, by which ranks rise from stage to stage at least (Eq. 5).
        increment: By how much an iteration raises R_1, the step where it is None.

    Raises:
        ValueError: no ranks of 1 or more fulfil Eq. 5 and 6.
    """
    if len(sizes) == 1:
        return (standard,)
    first, by = first_rank(standard, sum(sizes)), increment or step
    while not _allowed(_at(first, sizes, standard, step), step) and first > 1:
        first = max(1, first - by)  # Eq. 7 may start outside of the solution space where stages are many
    if not _allowed(_at(first, sizes, standard, step), step):
        raise ValueError(
            f"rank {standard} is too small for {len(sizes)} stages of {', '.join(map(str, sizes))} blocks whose ranks "
            f"rise by {step}: use a rank of {_smallest(sizes, step)} or more, fewer stages or a smaller step"
        )
    while _allowed(_at(first + by, sizes, standard, step), step):
        first += by
    return _at(first, sizes, standard, step)


def _at(first: int, sizes: Sequence[int], standard: int, step: int) -> tuple[int, ...]:
    """Eq. 8: linearly rising ranks, the last one what is left."""
    rising = [first + number * step for number in range(len(sizes) - 1)]
    left = standard * sum(sizes) - sum(rank * size for rank, size in zip(rising, sizes, strict=False))
    return (*rising, left // sizes[-1])


def _allowed(ranks: Sequence[int], step: int) -> bool:
    """Eq. 5 for the last rank; the others fulfil it by construction, and then N_remain is not negative."""
    return ranks[-1] >= ranks[-2] + step


def _smallest(sizes: Sequence[int], step: int) -> int:
    standard = 1
    while not _allowed(_at(1, sizes, standard, step), step):
        standard += 1
    return standard
