"""What a training run's data are worth in unique samples, where samples repeat.

Muennighoff et al., Scaling Data-Constrained Language Models (arXiv 2305.16264), Eq. 5 and section 6: a repeated epoch
is worth less than new data, and ever less,

    D' = U + U R* (1 - exp(-R / R*))

| symbol | meaning |
|---|---|
| U | unique samples |
| R | repetitions, epochs - 1 |
| R* | repetitions at which the worth has decayed by 1 - 1/e; 15.4 in their fit |

R* was measured on pretraining text; nobody has measured it on fine-tuning of a vision-language model.
"""

import math

DECAY = 15.4


def effective_samples(unique: int, epochs: float) -> float:
    """Unique samples that `epochs` passes over `unique` samples are worth; less than one pass is its share.

    Raises:
        ValueError: epochs or unique is not positive.
    """
    if not (epochs > 0 and unique > 0):
        raise ValueError(f"epochs and unique samples must be positive, got {epochs} and {unique}")
    if epochs <= 1:
        return epochs * unique
    repetitions = epochs - 1
    return unique * (1 + DECAY * -math.expm1(-repetitions / DECAY))
