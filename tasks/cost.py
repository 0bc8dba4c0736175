"""What a study will take on a machine that is not here; only configuration, processor and data are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mars_core.models.loading import skeleton
from mars_core.models.lora import RankPair, check_ranks
from mars_core.planning.architecture import architecture_of
from mars_core.planning.devices import UTILISATION, device_named
from mars_core.planning.estimate import Budget, estimate
from mars_core.planning.shapes import SampleShape, patch_size_of, shape_of
from mars_core.training.finetune import EVALUATIONS_PER_RUN
from tasks.calibrate import calibration_pairs, calibration_schedule
from tasks.config import StudyConfig
from tasks.data import calibration_set, usable_samples
from tasks.finetune import final_steps

SAMPLES_LOOKED_AT = 64


def cost_on(config: StudyConfig, device: str, utilisation: float = UTILISATION) -> dict[str, Any]:
    """Predicted time and memory of a study's calibration and final run on a device of the planner's table.

    The model's weights are neither needed nor read.

    Raises:
        ValueError: the device is not in the table, data or model cannot be used, or a rank does not fit the model.
    """
    target = device_named(device)
    family = config.family and config.family.as_family()
    network, partition = skeleton(config.model, family=family, trust_remote_code=config.loading.trust_remote_code)
    architecture = architecture_of(network, partition)
    pairs = calibration_pairs(config)
    for pair in pairs:
        check_ranks(partition, pair)
    shapes = sample_shapes(config, patch_size_of(network.config))
    phases = {
        name: estimate(architecture, shapes, budget, target, utilisation).as_json()
        for name, budget in _budgets(config, pairs).items()
    }
    notes = [*calibration_schedule(config)[2]]
    if config.recipe.dtype == "bfloat16" and target.bf16_flops is None:
        notes.append(f"{target.label} has no units for bfloat16: counted at its rate in float32")
    return {
        "device": target.label,
        "peak_tflops": target.peak_flops(config.recipe.dtype) / 1e12,
        "utilisation": utilisation,
        "parameters": architecture.parameters,
        "samples": _describe(shapes),
        **phases,
        "notes": notes,
    }


def sample_shapes(config: StudyConfig, patch_size: int | None) -> list[SampleShape]:
    """Shapes of calibration samples, evenly spread over them."""
    data = calibration_set(config)
    every = max(1, len(data) // SAMPLES_LOOKED_AT)
    return [shape_of(data[index], patch_size) for index in range(0, len(data), every)][:SAMPLES_LOOKED_AT]


def _budgets(config: StudyConfig, pairs: Sequence[RankPair]) -> dict[str, Budget]:
    horizon, checkpoints, _ = calibration_schedule(config)
    recipe, loading = config.recipe, config.loading
    runs = [pair for pair in pairs for _ in config.calibration.seeds]
    validation, test = (len(usable_samples(config, split)) for split in ("validation", "test"))
    shared = {
        "batch": recipe.batch_size,
        "micro_batch": config.micro_batch_size or recipe.batch_size,
        "scored_batch": config.evaluation_batch_size,
        "dtype": recipe.dtype,
        "four_bit": loading.four_bit,
    }
    scored = EVALUATIONS_PER_RUN * validation + 2 * test  # the test split before and after
    # The pair is not chosen yet: the largest.
    largest = max(pairs, key=lambda pair: pair.r_me + pair.r_llm)
    return {
        "calibration": Budget(tuple(runs), horizon, scored=len(runs) * len(checkpoints) * validation, **shared),
        "final": Budget(
            (largest,),
            final_steps(config),
            scored=scored,
            gradient_checkpointing=loading.gradient_checkpointing,
            **shared,
        ),
    }


def _describe(shapes: Sequence[SampleShape]) -> dict[str, float]:
    count = len(shapes)
    return {
        "looked_at": count,
        "mean_tokens": round(sum(shape.tokens for shape in shapes) / count, 1),
        "longest_tokens": max(shape.tokens for shape in shapes),
        "mean_answer_tokens": round(sum(shape.answers for shape in shapes) / count, 1),
        "mean_patches": round(sum(shape.patches for shape in shapes) / count, 1),
    }
