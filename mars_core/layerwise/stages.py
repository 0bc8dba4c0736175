"""HyDRA's stages: blocks with similar average gradient norms, by K-means (section III-B)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from sklearn.cluster import KMeans

RESTARTS = 10


def stages_of(norms: Sequence[float], count: int) -> tuple[int, ...]:
    """The stage of each block, 0 for the one with the smallest norms.

    Args:
        norms: Average gradient norm of each block.
        count: N_s, the number of stages.

    Raises:
        ValueError: there are fewer blocks, or fewer different norms, than stages; or a norm is not finite.
    """
    if count < 1 or count > len(norms):
        raise ValueError(f"{count} stages of {len(norms)} blocks are not possible: use 1 to {len(norms)} stages")
    if not all(math.isfinite(norm) for norm in norms):
        raise ValueError("a gradient norm of a block is not finite: probe at a lower learning rate")
    if len(set(norms)) < count:
        raise ValueError(
            f"the {len(norms)} blocks have {len(set(norms))} different gradient norms, too few for {count} stages: use "
            "fewer stages, or probe over more steps"
        )
    values = np.asarray(norms, dtype=np.float64)[:, None]
    means = KMeans(count, n_init=RESTARTS, random_state=0).fit(values)
    rank = np.argsort(np.argsort(means.cluster_centers_[:, 0]))
    return tuple(int(rank[label]) for label in means.labels_)
