"""What a study will take on a machine that is not here; only configuration, processor and data are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mars_core.data.dataset import EncodedDataset
from mars_core.data.lengths import TokenCounter
from mars_core.data.records import Sample
from mars_core.models.lora import check_ranks
from mars_core.planning.architecture import architecture_of
from mars_core.planning.devices import UTILISATION, Device, device_named
from mars_core.planning.estimate import Budget, Passes, estimate
from mars_core.planning.shapes import SampleShape, patch_size_of, shape_of
from mars_core.ranks import RankPair
from mars_core.training.finetune import EVALUATIONS_PER_RUN
from tasks.calibration.expected import expected_plan
from tasks.final.run import final_steps
from tasks.inputs.base_model import study_skeleton
from tasks.inputs.opened import Inputs, open_inputs
from tasks.running.progress import progress_bar
from tasks.settings.study import StudyConfig
from tasks.study.plan import CalibrationPlan, calibration_pairs, calibration_schedules

SAMPLES_LOOKED_AT = 64


def cost_on(config: StudyConfig, device: str, utilisation: float = UTILISATION) -> dict[str, Any]:
    """Predicted time and memory of a study's calibration and final run on a device of the planner's table.

    The model's weights are neither needed nor read.

    Raises:
        ValueError: the device is not in the table, data or model cannot be used, or a rank does not fit the model.
    """
    return cost_on_device(config, device_named(device), utilisation)


def cost_on_device(config: StudyConfig, target: Device, utilisation: float = UTILISATION) -> dict[str, Any]:
    """The same for a device of any memory and speed.

    Raises:
        ValueError: data or model cannot be used, or a rank does not fit the model.
    """
    inputs = open_inputs(config)
    network, partition = study_skeleton(config)
    architecture = architecture_of(network, partition)
    final = final_pair(config)
    for pair in (*calibration_pairs(config), final):
        check_ranks(partition, pair)
    plan = expected_plan(inputs)
    patch_size = patch_size_of(network.config)
    shapes, extremes = sample_shapes(inputs, patch_size), extreme_shapes(inputs, patch_size)
    phases = {
        name: estimate(architecture, shapes, budget, target, utilisation, extremes=extremes).as_json()
        for name, budget in _budgets(inputs, plan, final).items()
    }
    notes = [*plan.notes]
    if plan.range_test:
        notes.append(
            f"calibration: the first round of learning rates; the range test ({len(plan.range_test)} runs of "
            f"{plan.range_test[0].schedule.horizon} steps) and what widens the round come on top"
        )
    if config.recipe.dtype == "bfloat16" and target.bf16_flops is None:
        notes.append(f"{target.label} has no units for bfloat16: counted at its rate in float32")
    return {
        "device": target.label,
        "peak_tflops": target.peak_flops(config.recipe.dtype) / 1e12,
        "utilisation": utilisation,
        "parameters": architecture.parameters,
        "samples": _describe(shapes, extremes) | {"counted": len(_every_sample(inputs))},
        **phases,
        "notes": notes,
    }


def sample_shapes(inputs: Inputs, patch_size: int | None) -> list[SampleShape]:
    """Shapes of calibration samples, evenly spread over them: their mean stands for the data's."""
    data = inputs.calibration_set()
    every = max(1, len(data) // SAMPLES_LOOKED_AT)
    return [shape_of(data[index], patch_size) for index in range(0, len(data), every)][:SAMPLES_LOOKED_AT]


def extreme_shapes(inputs: Inputs, patch_size: int | None) -> tuple[SampleShape, ...]:
    """Shapes of the samples with the most tokens, the most image tokens and the most answer tokens, in any split.

    Every usable sample is counted; only these are encoded.
    """
    samples, measure = _every_sample(inputs), TokenCounter(inputs.processor).measure
    with progress_bar("counting tokens", len(samples)) as advance:
        lengths = []
        for sample in samples:
            lengths.append(measure(sample))
            advance(len(lengths))
    places = range(len(samples))
    most = {
        max(places, key=lambda place: lengths[place].tokens),
        max(places, key=lambda place: lengths[place].images),
        max(places, key=lambda place: lengths[place].answers),
    }
    longest = EncodedDataset([samples[place] for place in sorted(most)], inputs.processor)
    return tuple(shape_of(longest[index], patch_size) for index in range(len(longest)))


def _every_sample(inputs: Inputs) -> list[Sample]:
    return [sample for split in ("train", "validation", "test") for sample in inputs.usable(split)]


def final_pair(config: StudyConfig) -> RankPair:
    """The largest pair that the search may choose: what the final run is planned for before one is chosen."""
    me, llm = config.available_ranks
    return RankPair(max(me), max(llm))


def _budgets(inputs: Inputs, plan: CalibrationPlan, final: RankPair) -> dict[str, Budget]:
    schedules, _ = calibration_schedules(inputs)
    recipe, loading = inputs.config.recipe, inputs.config.loading
    runs = [run.pair for run in plan.runs if run.schedule == schedules[0]]
    validation, test = (len(inputs.usable(split)) for split in ("validation", "test"))
    shared: dict[str, Any] = {
        "batch": recipe.batch_size,
        "micro_batch": inputs.config.micro_batch_size or recipe.batch_size,
        "scored_batch": inputs.config.evaluation_batch_size,
        "dtype": recipe.dtype,
        "four_bit": loading.four_bit,
    }
    scored = EVALUATIONS_PER_RUN * validation + 2 * test  # the test split before and after
    passes: Passes = "checkpointed" if loading.gradient_checkpointing else "peft"
    steps = sum(one.horizon for one in schedules)
    of_calibration = len(runs) * sum(len(one.checkpoint_steps) for one in schedules) * validation
    calibration = Budget(tuple(runs), steps, scored=of_calibration, passes="packed", lengths=len(schedules), **shared)
    return {
        "calibration": calibration,
        "final": Budget((final,), final_steps(inputs), scored=scored, passes=passes, **shared),
    }


def _describe(shapes: Sequence[SampleShape], extremes: Sequence[SampleShape]) -> dict[str, float]:
    count = len(shapes)
    return {
        "looked_at": count,
        "mean_tokens": round(sum(shape.tokens for shape in shapes) / count, 1),
        "longest_tokens": max(shape.tokens for shape in (*shapes, *extremes)),
        "mean_answer_tokens": round(sum(shape.answers for shape in shapes) / count, 1),
        "mean_patches": round(sum(shape.patches for shape in shapes) / count, 1),
    }
