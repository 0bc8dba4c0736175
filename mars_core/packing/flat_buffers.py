"""Vectors of several runs in shared matrices, so that layers of equal rank can go through one batched product."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from mars_core.models.partition import Group
from mars_core.packing.adapters import Layout


def zero_vectors(layouts: Sequence[Layout], device: torch.device, dtype: torch.dtype) -> list[dict[Group, Tensor]]:
    """A vector of zeros for every group of every run; those of equal rank are rows of one matrix, in this order."""
    alike: dict[tuple[Group, int], list[int]] = defaultdict(list)
    for number, layout in enumerate(layouts):
        for group, size in layout.sizes.items():
            alike[group, size].append(number)
    rows: list[dict[Group, Tensor]] = [{} for _ in layouts]
    for (group, size), numbers in alike.items():
        matrix = torch.zeros((len(numbers), size), device=device, dtype=dtype)
        for number, row in zip(numbers, matrix, strict=True):
            rows[number][group] = row
    return [{group: found[group] for group in layout.sizes} for layout, found in zip(layouts, rows, strict=True)]
