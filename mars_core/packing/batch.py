"""A batch as a pass needs it: where the real tokens and the answers lie, and its inputs for several runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from mars_core.evaluation.answer_loss import IGNORE


@dataclass(frozen=True)
class PackedBatch:
    """Model inputs of one batch of B sequences, padded to length L.

    inputs: tensors with one block of rows per batch along dimension 0, without labels. labels: shape (B, L), -100 where
    there is no answer token. unpadded: whether the language model gets the real tokens alone. features: what the
    projector's entry layers read, by layer, once a pass without vision adapters has computed it.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    unpadded: bool
    features: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _distinct: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def repeated(self, width: int) -> dict[str, Tensor]:
        """Inputs of `width` runs one after another."""
        return {key: value.repeat(width, *[1] * (value.dim() - 1)) for key, value in self.inputs.items()}

    @property
    def nbytes(self) -> int:
        """Memory of inputs, labels and features."""
        return sum(value.nbytes for value in (*self.inputs.values(), self.labels, *self.features.values()))

    @cached_property
    def mask(self) -> Tensor:
        """Which places hold real tokens, shape (B, L)."""
        mask = self.inputs.get("attention_mask")
        return torch.ones_like(self.labels, dtype=torch.bool) if mask is None else mask.bool()

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence as the language model sees it: the real ones, or all if padding stays."""
        kept = self.mask if self.unpadded else torch.ones_like(self.mask)
        return tuple(kept.sum(dim=1).tolist())

    @cached_property
    def answer_rows(self) -> Tensor:
        """Places, among the tokens laid end to end, whose next token is an answer token; shape (n_answer_tokens,)."""
        predicts = self._predicts[self.mask] if self.unpadded else self._predicts.flatten()
        return predicts.nonzero()[:, 0]

    @cached_property
    def targets(self) -> Tensor:
        """Answer tokens in reading order, shape (n_answer_tokens,)."""
        return self.labels[:, 1:][self._predicts[:, :-1]]

    @cached_property
    def answers_in(self) -> tuple[Tensor, ...]:
        """Answer rows of each sequence, counted from its own first token."""
        starts = torch.tensor([0, *accumulate(self.lengths)][:-1], device=self.labels.device)
        counts = self._predicts.sum(dim=1).tolist()
        parts = torch.split(self.answer_rows, counts)
        return tuple(rows - start for rows, start in zip(parts, starts, strict=True))

    def distinct_rows(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Which of one run's picture rows differ, and for every row the place of its equal among those."""
        if self._distinct is None:
            _, places = torch.unique(pictures.flatten(1), dim=0, return_inverse=True)
            first = torch.full((int(places.max()) + 1,), len(places), device=places.device)
            numbers = torch.arange(len(places), device=places.device)
            object.__setattr__(self, "_distinct", (first.scatter_reduce(0, places, numbers, "amin"), places))
        distinct = self._distinct
        assert distinct is not None
        return distinct

    @cached_property
    def _predicts(self) -> Tensor:
        predicts = torch.zeros_like(self.labels, dtype=torch.bool)
        predicts[:, :-1] = self.labels[:, 1:] != IGNORE
        return predicts


def pack_batch(batch: Mapping[str, Tensor], *, unpadded: bool) -> PackedBatch:
    """Take model inputs with `labels` apart.

    Raises:
        ValueError: there is no answer token in it.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    packed = PackedBatch(inputs, batch["labels"], unpadded)
    if not len(packed.targets):
        raise ValueError("a batch without answer tokens has no loss: give samples whose labels are not all -100")
    return packed
