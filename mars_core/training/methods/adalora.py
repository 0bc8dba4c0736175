"""AdaLoRA (Zhang et al., 2023): singular triplets, pruned to a rank budget by importance (paper, appendix B)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import AdaLoraConfig, PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback

from mars_core.models.partition import GROUPS, Partition
from mars_core.training.methods.method import trained
from mars_core.training.methods.peft_method import PeftMethod
from mars_core.training.recipe import Recipe

ADAPTER = "default"
KEPT = "kept."
IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""The rank allocator's running averages, by their names in PEFT."""
LAST = "averages_at_last_allocation"
"""Where they are kept on the allocator once it has forgotten them."""


@dataclass(frozen=True)
class AdaLora(PeftMethod):
    """PEFT's AdaLoRA on every layer of the partition, its phases given as shares of the run.

    target_rank: average rank per layer at the end. init_rank: rank at the start, 1.5 times as much where it is None, as
    in its paper. warmup: share of the steps before ranks fall; final: share after they have reached the target;
    orthogonality: the regulariser's weight. The defaults are near those of its authors' published run on MNLI (8,000
    and 50,000 of 86,000 steps, pruned every 100; 0.1; 0.85). alpha = 2 * init_rank, so that a fresh adapter is scaled
    as every other one here.
    """

    target_rank: int = 32
    init_rank: int | None = None
    warmup: float = 0.1
    final: float = 0.5
    orthogonality: float = 0.1
    beta1: float = 0.85
    beta2: float = 0.85

    # The penalty reaches A and B of every layer in every pass, and is made to reach E.
    reaches_all: ClassVar[bool] = True
    # Its allocator compares importances over all layers, and PEFT's reads whole gradients.
    shards: ClassVar[bool] = False

    @property
    def start(self) -> int:
        """Rank of every layer at the start."""
        return self.init_rank or (3 * self.target_rank + 1) // 2

    def check(self, partition: Partition, recipe: Recipe) -> None:
        """Refuse ranks that the layers cannot hold, a start or phases that leave nothing to prune, and LoRA+."""
        if recipe.lora_plus_ratio != 1:
            raise ValueError(
                f"AdaLoRA starts with neither A nor B at zero, so recipe.lora_plus_ratio {recipe.lora_plus_ratio:g} "
                "has no meaning for it: set it to 1, or compare with another method"
            )
        if self.start <= self.target_rank:
            raise ValueError(
                f"AdaLoRA prunes from init_rank down to target_rank, got {self.start} and {self.target_rank}: "
                "give a larger init_rank"
            )
        if self.warmup + self.final >= 1:
            raise ValueError(
                f"AdaLoRA prunes between warmup and final, got {self.warmup} and {self.final} of the steps, which "
                "leave none to prune in: give two shares that sum to less than 1"
            )
        for group in GROUPS:
            largest = partition.largest_rank(group)
            if partition.group(group) and self.start > largest:
                raise ValueError(
                    f"AdaLoRA's rank {self.start} at the start is above the width {largest} of a layer in the {group}: "
                    f"use a target_rank up to {2 * largest // 3}"
                )

    def trainable_parameters(self, partition: Partition) -> int:
        """Those at the start, r * (in + out + 1) per layer; what is pruned is trained until then."""
        layers = [layer for group in GROUPS for layer in partition.group(group)]
        return sum(self.start * (layer.in_features + layer.out_features + 1) for layer in layers)

    def config(self, partition: Partition, *, recipe: Recipe, steps: int) -> AdaLoraConfig:
        """PEFT's configuration for a run of `steps` optimizer steps."""
        before, after = self.phases(steps)
        return AdaLoraConfig(
            init_r=self.start,
            target_r=self.target_rank,
            lora_alpha=2 * self.start,
            lora_dropout=recipe.lora_dropout,
            target_modules=[layer.name for group in GROUPS for layer in partition.group(group)],
            tinit=before,
            tfinal=after,
            deltaT=max(1, steps // 1000),
            beta1=self.beta1,
            beta2=self.beta2,
            orth_reg_weight=self.orthogonality,
            total_step=steps,
            task_type="CAUSAL_LM",
        )

    def wrap(self, model: nn.Module, partition: Partition, *, seed: int, recipe: Recipe, steps: int) -> nn.Module:
        """Wrap `model`; the number of ranks that scales an adapter is a constant, which PEFT leaves trainable."""
        wrapped = super().wrap(model, partition, seed=seed, recipe=recipe, steps=steps)
        for name, parameter in wrapped.named_parameters():
            if ".ranknum." in name:
                parameter.requires_grad_(False)
        return wrapped

    def save(self, wrapped: nn.Module, folder: Path) -> None:
        """Write the adapter as PEFT does; of a layer that lost all its ranks, empty tensors."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*have invalid shape")
            super().save(wrapped, folder)

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        """Read the adapter as PEFT does, which first takes AdaLoRA's `rank_pattern` for LoRA's."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*rank_pattern keys did not match")
            return super().load(model, folder)

    def phases(self, steps: int) -> tuple[int, int]:
        """Steps before ranks fall, and after they have reached the target."""
        return int(self.warmup * steps), int(self.final * steps)

    def settled(self, step: int, steps: int) -> bool:
        """Earlier weights have more rank than the budget allows."""
        return step >= steps - self.phases(steps)[1]

    def penalty(self, wrapped: nn.Module) -> Tensor:
        """The orthogonality regulariser that `AdaLoraModel.forward` adds to a loss of the model's own.

        The mean over all A and B of the Frobenius norm of A A' - I and B' B - I, times its weight.
        """
        norms, reach = [], []
        with torch.autocast(next(wrapped.parameters()).device.type, enabled=False):
            for name, weight in trained(wrapped).items():
                if "lora_E" in name:
                    reach.append(weight.sum() * 0.0)  # importance needs a gradient even where a batch has no image
                    continue
                product = weight @ weight.T if "lora_A" in name else weight.T @ weight
                identity = torch.eye(len(product), dtype=product.dtype, device=product.device)
                norms.append(torch.linalg.matrix_norm(product - identity))
            return self.orthogonality * torch.stack(norms).mean() + torch.stack(reach).sum()

    def callbacks(self, wrapped: nn.Module, partition: Partition | None) -> list[TrainerCallback]:
        """Allocates ranks after every optimizer step."""
        return [_Allocate(wrapped)]

    def state(self, wrapped: nn.Module) -> dict[str, Tensor]:
        """Weights, which triplets are kept, and the importances that later pruning goes by."""
        tuner, found = _tuner(wrapped), super().state(wrapped)
        for name, kept in (tuner.peft_config[ADAPTER].rank_pattern or {}).items():
            found[f"{KEPT}{name}"] = torch.tensor(kept)
        for average in IMPORTANCE:
            for name, value in getattr(tuner.rankallocator, average).items():
                found[f"{average}.{name}"] = value.detach().cpu().contiguous()
        return found

    def restore(self, wrapped: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put weights, kept triplets and importances back."""
        tuner = _tuner(wrapped)
        super().restore(wrapped, {name: value for name, value in state.items() if not _is_extra(name)})
        kept = {name.removeprefix(KEPT): value.tolist() for name, value in state.items() if name.startswith(KEPT)}
        tuner.peft_config[ADAPTER].rank_pattern = kept or None
        device = next(wrapped.parameters()).device
        for average in IMPORTANCE:
            prefix = f"{average}."
            values = {n.removeprefix(prefix): v.to(device) for n, v in state.items() if n.startswith(prefix)}
            setattr(tuner.rankallocator, average, values)


def triplet_importance(wrapped: nn.Module) -> dict[str, tuple[float, ...]]:
    """Importance of every singular triplet of each layer when ranks were last allocated, by the layer's path.

    AdaLoRA's Eq. 8: that of the singular value, and the means of those of its two vectors, each a smoothed sensitivity
    times its uncertainty.

    Raises:
        ValueError: they are not known, because ranks were allocated in another process.
    """
    last = getattr(_tuner(wrapped).rankallocator, LAST, None)
    if last is None:
        raise ValueError(
            "AdaLoRA's importances are known only where ranks were allocated to the end in this process: train it "
            "here, without accelerate's processes, from the start"
        )
    averages, uncertainties = last
    found: dict[str, tuple[float, ...]] = {}
    for name in averages:
        if ".lora_E." in name:
            value, left, right = (
                averages[own] * uncertainties[own]
                for own in (name, name.replace("lora_E", "lora_A"), name.replace("lora_E", "lora_B"))
            )
            summed = value.flatten() + left.mean(dim=1) + right.mean(dim=0)
            found[name.partition(".lora_E.")[0]] = tuple(summed.double().tolist())
    return found


def _is_extra(name: str) -> bool:
    return name.startswith((KEPT, *(f"{average}." for average in IMPORTANCE)))


def _tuner(wrapped: nn.Module) -> Any:
    assert isinstance(wrapped, PeftModel)
    return wrapped.base_model


class _Allocate(TrainerCallback):  # type: ignore[misc]
    """PEFT asks for this between the optimizer's step and the next `zero_grad`: it reads weights and gradients."""

    def __init__(self, wrapped: nn.Module) -> None:
        self.tuner = _tuner(wrapped)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        allocator = self.tuner.rankallocator
        averages = allocator.exp_avg_ipt, allocator.exp_avg_unc
        self.tuner.update_and_allocate(state.global_step + 1)  # the Trainer counts the step later
        if allocator.exp_avg_ipt is not averages[0]:  # PEFT forgets them with the last allocation
            setattr(allocator, LAST, averages)
