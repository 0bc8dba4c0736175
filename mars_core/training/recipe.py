"""The recipe: the fine-tuning settings shared by calibration and the final run. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mars_core.ranks import AlphaRule
from mars_core.rates import LearningRates, one_rate


@dataclass(frozen=True)
class Recipe:
    """Fine-tuning settings; defaults are the paper's (appendix G) where it states them.

    learning_rate: peak rate. batch_size: samples per optimizer step. warmup_ratio: share of the horizon spent
    in warm-up. max_grad_norm: clipping threshold on the norm over all adapters, 0 for none (the paper
    is silent; 1.0 is the Trainer's default). lora_alpha: how alpha follows
    from the rank. dtype: dtype of the frozen weights.

    module_learning_rates: peak rates of each module, None for one of all.
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

    def as_json(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)

    @property
    def learning_rates(self) -> LearningRates:
        """Peak rate of each module."""
        return self.module_learning_rates or one_rate(self.learning_rate)

    def warmup_steps(self, horizon: int) -> int:
        """Warm-up steps of a schedule of `horizon` steps."""
        return round(self.warmup_ratio * horizon)
