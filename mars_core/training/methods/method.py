"""What a training method is: how it makes a model trainable, and what is special about training it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from mars_core.models.lora import parameters_by_group
from mars_core.models.partition import Partition
from mars_core.training.optimizer import Halves, rate_groups
from mars_core.training.recipe import Recipe


class Method(ABC):
    """A way to train a partition's linear layers. Subclasses are frozen records of their settings.

    Attributes:
        result: name of the folder that `save` writes, as users see it.
        keeps_base: whether `unwrap` gives the base model back as it was.
        reaches_all: whether every trained parameter has a gradient in every pass, whatever the batch.
        shards: whether FSDP can train it.
    """

    result: ClassVar[str] = "adapter"
    keeps_base: ClassVar[bool] = True
    reaches_all: ClassVar[bool] = False
    shards: ClassVar[bool] = True

    @abstractmethod
    def check(self, partition: Partition, recipe: Recipe) -> None:
        """Refuse settings that the layers cannot hold, or a recipe that the method has no use for.

        Called before anything expensive.

        Raises:
            ValueError: they do not fit.
        """

    @abstractmethod
    def trainable_parameters(self, partition: Partition) -> int:
        """Number of parameters that are trained."""

    @abstractmethod
    def wrap(self, model: nn.Module, partition: Partition, *, seed: int, recipe: Recipe, steps: int) -> nn.Module:
        """Make `model` trainable for a run of `steps` optimizer steps; `seed` fixes fresh weights.

        Raises:
            ValueError: the settings do not fit the model.
        """

    @abstractmethod
    def unwrap(self, wrapped: nn.Module) -> None:
        """Take off again what `wrap` put on; see `keeps_base`."""

    @abstractmethod
    def save(self, wrapped: nn.Module, folder: Path) -> None:
        """Write the trained result."""

    @abstractmethod
    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        """The trained model for inference: a base model `model` with the result in `folder`.

        `unwrap` takes it off again; `model` is changed no further.
        """

    def parameter_groups(self, wrapped: nn.Module, partition: Partition, recipe: Recipe) -> list[dict[str, Any]]:
        """The optimizer's groups (`params`, `lr`, `name`): one where all rates are equal, else those of a pack."""
        rates, ratio = recipe.learning_rates, recipe.lora_plus_ratio
        if ratio == 1 and len(set(rates)) == 1:
            return [{"params": list(trained(wrapped).values()), "lr": rates.llm, "name": "all"}]
        found = parameters_by_group(wrapped, partition)
        return rate_groups({group: _halves(own) for group, own in found.items() if own}, rates, ratio)

    def penalty(self, wrapped: nn.Module) -> Tensor | None:
        """What is added to the loss of an optimizer step, None for nothing."""
        return None

    def callbacks(self, wrapped: nn.Module, partition: Partition | None) -> list[TrainerCallback]:
        """What must happen at certain points of training; partition: of the base model, where it is known."""
        return []

    def settled(self, step: int, steps: int) -> bool:
        """Whether the weights after `step` of `steps` steps are of the kind that the method delivers."""
        return True

    def state(self, wrapped: nn.Module) -> dict[str, Tensor]:
        """What training has made of a freshly wrapped model: CPU copies by name."""
        return {name: value.detach().cpu().contiguous() for name, value in trained(wrapped).items()}

    def restore(self, wrapped: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put a state into a freshly wrapped model.

        Raises:
            ValueError: it is that of another model or method.
        """
        parameters = trained(wrapped)
        if parameters.keys() != state.keys():
            odd = sorted(parameters.keys() ^ state.keys())
            raise ValueError(f"the weights belong to another model or method: {len(odd)} names differ, first {odd[0]}")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])


def _halves(parameters: Mapping[str, nn.Parameter]) -> Halves:
    # As PEFT's LoRA+ has it: vectors (DoRA's magnitudes) have the rate of B.
    b = {name for name, parameter in parameters.items() if ".lora_B." in name or parameter.ndim == 1}
    rest = [parameter for name, parameter in parameters.items() if name not in b]
    return rest, [parameter for name, parameter in parameters.items() if name in b]


def trained(wrapped: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by name."""
    return {name: parameter for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
