"""Score adapters of a pack that are not under way: their weights at the end on other data, or mixed from snapshots."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mars_core.evaluation.objectives.measurement import Measurement
from mars_core.evaluation.scores import Score, Totals, add_answers, overall
from mars_core.models.partition import Partition
from mars_core.packing.adapter_batch import AdapterBatch, Pass, make_adapter_batch
from mars_core.packing.adapters import Layout, by_group
from mars_core.packing.batch import PackedBatch, pack_batch
from mars_core.packing.examine import examined
from mars_core.packing.forward import adapter_batch_logits, autocast_of, losses_of
from mars_core.packing.patching import patched
from mars_core.packing.run import PackRun
from mars_core.training.recipe import Recipe

Scored = tuple[Score, float | None]
"""Score of one run, and the value of the metric that was asked for."""


def score_adapters(
    model: nn.Module,
    partition: Partition,
    runs: Sequence[tuple[PackRun, Tensor]],
    batches: Sequence[tuple[Mapping[str, Tensor], Sequence[str]]],
    recipe: Recipe,
    *,
    width: int = 8,
) -> list[Score]:
    """Scores of adapters given by their flat weights, as `TrainedPack.weights` and snapshots of a pack hold them.

    Args:
        model: base model with frozen weights.
        runs: each with flat weights of its layout.
        batches: inputs and the task type of each row; at least one.
        width: runs that go through the model side by side.

    Raises:
        ValueError: there are no batches, or weights are not of their run's layout.
    """
    if not batches:
        raise ValueError("there is nothing to score on: give at least one batch with answer tokens")
    layouts = [run.layout(partition, recipe) for run, _ in runs]
    weights = [flat for _, flat in runs]
    for (run, flat), layout in zip(runs, layouts, strict=True):
        if flat.shape != (layout.size,):
            raise ValueError(
                f"weights of {run.ranks} have shape {tuple(flat.shape)}, expected ({layout.size},): give the flat "
                "weights of the same pair"
            )
    structure = examined(model, partition, batches[0][0])
    width = width if structure.side_by_side else 1
    packed = [(pack_batch(batch, unpadded=structure.unpadded), tasks) for batch, tasks in batches]
    was_training = model.training
    model.eval()
    try:
        with patched(model, partition, structure):
            found = [
                score_adapter_batch(model, _stacked(layouts[at], weights[at]), packed, recipe)
                for at in (slice(start, start + width) for start in range(0, len(runs), width))
            ]
    finally:
        model.train(was_training)
    return [score for part in found for score, _ in part]


def _stacked(layouts: Sequence[Layout], weights: Sequence[Tensor]) -> AdapterBatch:
    parts = [by_group(flat, layout) for flat, layout in zip(weights, layouts, strict=True)]
    return make_adapter_batch(layouts, parts, parts)  # nothing is differentiated, so that gradients are never touched


@torch.no_grad()
def score_adapter_batch(
    model: nn.Module,
    adapters: AdapterBatch,
    batches: Iterable[tuple[PackedBatch, Sequence[str]]],
    recipe: Recipe,
    measurement: Measurement | None = None,
) -> list[Scored]:
    """Scores of the runs of one adapter batch; `model` must be patched."""
    totals: list[dict[str, Totals]] = [defaultdict(Totals) for _ in range(adapters.width)]
    collectors = [measurement.collect() if measurement else None for _ in range(adapters.width)]
    for batch, tasks in batches:
        with autocast_of(recipe, model):
            logits = adapter_batch_logits(model, Pass(adapters, batch))
            losses = losses_of(logits, batch.targets)
        right = logits.argmax(dim=-1) == batch.targets
        for total, loss_of_one, right_of_one in zip(totals, losses, right, strict=True):
            add_answers(total, loss_of_one, right_of_one, batch.labels, tasks)
        for collector, logits_of_one, loss_of_one in zip(collectors, logits, losses, strict=True):
            if collector is not None:
                collector.add(logits_of_one, loss_of_one, batch.targets, batch.labels)
    scores = [overall(total).score() for total in totals]
    return [
        (score, collector.value() if collector is not None and math.isfinite(score.loss) else None)
        for score, collector in zip(scores, collectors, strict=True)
    ]
