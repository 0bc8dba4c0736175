"""Whether PEFT finds an adapter again that it has saved: saved names go through transformers' renaming of weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import peft
import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

from mars_core.models.partition import GROUPS, WHERE, Partition

PREFIX = "base_model.model."


def lost_on_reload(model: Any, layers: Iterable[str]) -> list[str]:
    """Those linear layers whose adapters, saved and loaded, come to lie under other names, or hold other values."""
    names = list(layers)
    weights = {}
    for number, name in enumerate(names):  # a number tells the layer
        layer = model.get_submodule(name)
        weights[f"{PREFIX}{name}.lora_A.weight"] = torch.full((1, layer.in_features), float(number))
        weights[f"{PREFIX}{name}.lora_B.weight"] = torch.full((layer.out_features, 1), float(number))
    config = LoraConfig(r=1, target_modules=names)
    loaded = convert_peft_adapter_state_dict_for_transformers(model, config, dict(weights))

    def is_lost(name: str) -> bool:
        keys = [f"{PREFIX}{name}.lora_{part}.weight" for part in "AB"]
        return not all(key in loaded and torch.equal(loaded[key], weights[key]) for key in keys)

    return [name for name in names if is_lost(name)]


def check_reload(model: Any, partition: Partition) -> None:
    """Hold a partition against what PEFT makes of saved adapters.

    Raises:
        ValueError: an adapter on a layer of a group would be lost when it is loaded.
    """
    lost = lost_on_reload(model, [layer.name for group in GROUPS for layer in partition.group(group)])
    if lost:
        raise ValueError(
            f"PEFT {peft.__version__} gives the saved adapters of {len(lost)} linear layers other names when it loads "
            f"them (first: {lost[0]}), so that what was trained would be lost: add a pattern for them to `unused`, "
            f"{WHERE}, or try another version of PEFT"
        )
