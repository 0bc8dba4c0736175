"""Importance of base weights (GoRA, Eq. 5): the mean of |W * G| over each weight, G its gradient over a few batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mars_core.evaluation.answer_loss import token_losses


def weight_importance(
    model: nn.Module, layers: Sequence[str], steps: Iterable[Sequence[Mapping[str, Tensor]]]
) -> dict[str, float]:
    """Importance of each layer's weight under the frozen base model.

    Args:
        model: The base model; it is given back frozen, without gradients. Gradients take as much memory as the weights.
        layers: Paths of linear layers.
        steps: The batches of each step; the gradient is averaged over steps, each a mean over its answer tokens.

    Raises:
        ValueError: there are no steps, or weights are quantized.
    """
    count = 0
    weights = {name: _weight(model, name) for name in layers}
    with _with_gradients(list(weights.values())):
        for step in steps:
            total = sum(int((batch["labels"][:, 1:] >= 0).sum()) for batch in step)
            for batch in step:
                (token_losses(model, batch).sum() / total).backward()  # type: ignore[no-untyped-call]
            count += 1
        if not count:
            raise ValueError("importance is measured over batches, and there are none: give at least one step")
        return {
            name: 0.0 if weight.grad is None else float((weight.detach() * weight.grad).abs().double().mean()) / count
            for name, weight in weights.items()
        }


def _weight(model: nn.Module, name: str) -> nn.Parameter:
    weight = model.get_submodule(name).weight
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        raise ValueError(
            f"the weight of {name} is quantized and has no gradient: set loading.four_bit to false, or use a method "
            "that asks the adapters alone (hydra, fisher)"
        )
    return weight


@contextmanager
def _with_gradients(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    for weight in weights:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for weight in weights:
            weight.grad = None
            weight.requires_grad_(False)
