"""How far a module's adapters are from where they end: distance between products B A, without forming them.

| symbol | meaning | shape |
|---|---|---|
| A | LoRA down-projection of one layer | (r, d_in) |
| B | LoRA up-projection of one layer | (d_out, r) |

Only the product B A acts on the model (B and A alone are free up to an invertible r x r matrix), so distances
are taken between products.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Layer = tuple[NDArray[Any], NDArray[Any]]  # (B, A)


def relative_distance(snapshot: Sequence[Layer], last: Sequence[Layer]) -> float:
    """Frobenius distance of a module's products B A from its last snapshot, relative to the last products.

    Args:
        snapshot: (B, A) of every adapted layer of the module, in the order of `last`.
        last: the same at the end of the run.

    Returns:
        sqrt(sum_layers |B A - B' A'|^2 / sum_layers |B' A'|^2), dimensionless: 1 at initialisation (B = 0).

    Raises:
        ValueError: the layers do not correspond, or the last products are all zero.
    """
    _require_same_layers(snapshot, last)
    apart = sum(_squared_distance(one, other) for one, other in zip(snapshot, last, strict=True))
    size = sum(_inner(layer, layer) for layer in last)
    if size <= 0.0:
        raise ValueError("the last adapter products are all zero, so no distance is relative to them: train the module")
    return float(np.sqrt(max(apart, 0.0) / size))


def _squared_distance(one: Layer, other: Layer) -> float:
    """|B A - B' A'|^2, from the thin QR factors of [B, -B'] and [A; A']' so that close snapshots keep their digits."""
    left = _triangle(np.concatenate([_double(one[0]), -_double(other[0])], axis=1))
    right = _triangle(np.concatenate([_double(one[1]), _double(other[1])], axis=0).T)
    return float(np.sum((left @ right.T) ** 2))


def _triangle(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.qr(matrix, mode="r"))


def _inner(one: Layer, other: Layer) -> float:
    """Sum of the elementwise product of B A and B' A', from r x r matrices."""
    return float(np.sum((_double(one[0]).T @ _double(other[0])) * (_double(one[1]) @ _double(other[1]).T)))


def _double(matrix: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(matrix, dtype=np.float64)


def _require_same_layers(snapshot: Sequence[Layer], last: Sequence[Layer]) -> None:
    shapes = [(B.shape[0], A.shape[1]) for B, A in snapshot]
    expected = [(B.shape[0], A.shape[1]) for B, A in last]
    if shapes != expected or not expected:
        raise ValueError(
            f"snapshots must hold the same layers in the same order, got products of shapes {shapes} and {expected}"
        )
