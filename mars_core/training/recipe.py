"""The recipe: the fine-tuning settings shared by calibration and the final run. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from mars_core.models.targets import Targets
from mars_core.ranks import Alpha, AlphaRule, AlphaRules
from mars_core.rates import LearningRates, one_rate

Optimizer = Literal["adam", "adamw"]
Schedule = Literal["cosine", "linear", "constant", "warmup_stable_decay"]


@dataclass(frozen=True)
class Recipe:
    """Fine-tuning settings; defaults are the paper's (appendix G) where it states them.

    learning_rate: peak rate. batch_size: samples per optimizer step. warmup_ratio: share of the horizon spent
    in warm-up. max_grad_norm: clipping threshold on the norm over all adapters, 0 for none (the paper
    is silent; 1.0 is the Trainer's default). lora_alpha: how alpha follows
    from the rank. dtype: dtype of the frozen weights.

    module_learning_rates, module_lora_alpha: peak rates and rules of each module, None for one of all. optimizer,
    weight_decay (of AdamW), beta1, beta2: Adam's settings. schedule: how the rate runs after the warm-up; final_share:
    share of the peak that it ends at; decay_ratio: share of the horizon in which `warmup_stable_decay` falls. targets:
    the layers that are adapted. projector_rank: the projector's own rank, None where it follows the LLM's.
    lora_plus_ratio: learning rate of B over that of A (LoRA+).
    """

    learning_rate: float = 1e-5
    batch_size: int = 8
    warmup_ratio: float = 0.1
    max_grad_norm: float = 1.0
    lora_dropout: float = 0.0
    lora_alpha: AlphaRule = "2r"
    max_tokens: int = 2048
    dtype: str = "float32"
    module_learning_rates: LearningRates | None = None
    module_lora_alpha: AlphaRules | None = None
    optimizer: Optimizer = "adam"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    schedule: Schedule = "cosine"
    final_share: float = 0.0
    decay_ratio: float = 0.2
    targets: Targets = "all"
    projector_rank: int | None = None
    lora_plus_ratio: float = 1.0

    def as_json(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)

    @property
    def learning_rates(self) -> LearningRates:
        """Peak rate of each module."""
        return self.module_learning_rates or one_rate(self.learning_rate)

    @property
    def alpha(self) -> Alpha:
        """How LoRA's alpha follows from the rank, in all modules or in each."""
        return self.module_lora_alpha or self.lora_alpha

    def warmup_steps(self, horizon: int) -> int:
        """Warm-up steps of a schedule of `horizon` steps."""
        return round(self.warmup_ratio * horizon)

    def decay_steps(self, horizon: int) -> int:
        """Steps in which a `warmup_stable_decay` schedule of `horizon` steps falls, its last ones."""
        return round(self.decay_ratio * horizon)
