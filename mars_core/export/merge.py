"""A base model with an adapter folded into its weights, as one checkpoint folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from mars_core.models.loading import Base
from mars_core.models.processor import save_processor
from mars_core.models.saving import save_network
from mars_core.training.finetune import all_logits

# Largest change of the logits (root mean square, relative to theirs) that is rounding. In fp32 only the order of sums
# changes. In half precision each merged weight is rounded once more (2^-9 for bfloat16, 2^-12 for float16), which adds
# up over the layers; an adapter merged wrongly changes far more.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class MergeChangedLogitsError(RuntimeError):
    """The merged model computes something else than base and adapter."""


@dataclass(frozen=True)
class Merged:
    """What a merge came to.

    difference: root mean square of the change of the logits on the probe, relative to the logits' own. tolerance: what
    it was held against.
    """

    parameters: int
    difference: float
    tolerance: float


def merge_adapter(base: Base, adapter: Path, probe: Mapping[str, Tensor], folder: Path) -> Merged:
    """Fold an adapter into its base model and save the result into the existing `folder`.

    The folder is a checkpoint as transformers makes it: safetensors weights, configuration, generation settings,
    processor and chat template. `base` is used up. probe: a batch that both models are compared on.

    Raises:
        MergeChangedLogitsError: the merged model's logits are others, beyond rounding.
    """
    wrapped = PeftModel.from_pretrained(base.model, str(adapter))
    before = all_logits(wrapped, probe)
    network: Any = wrapped.merge_and_unload(safe_merge=True)
    tolerance = TOLERANCES[next(network.parameters()).dtype]
    difference = relative_difference(all_logits(network, probe), before)
    if not difference <= tolerance:
        raise MergeChangedLogitsError(
            f"merging {adapter} into {base.model_id} changes the logits by {difference:.2g} (root mean square, "
            f"relative), more than the {tolerance:.2g} that rounding explains: serve the adapter unmerged, report this"
        )
    save_network(network, base.model_id, folder)
    save_processor(base.processor, base.model_id, folder)
    return Merged(sum(parameter.numel() for parameter in network.parameters()), difference, tolerance)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Root mean square of found - expected over that of expected, in fp32 or better."""
    wide = expected if expected.dtype == torch.float64 else expected.float()
    return float((found.to(wide.dtype) - wide).norm() / wide.norm())
