"""Train one block of a cell: every run to its end, with its curve, its test loss and its rewind times."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from mars_core.data.collate import collate
from mars_core.data.encode import Encoded
from mars_core.evaluation.scores import Score
from mars_core.models.loading import Base
from mars_core.models.lora import trainable_parameters
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.adapters import by_group, flatten
from mars_core.packing.run import PackRun
from mars_core.packing.score import score_adapters
from mars_core.packing.state import PackState
from mars_core.packing.train import TrainedPack, train_pack
from mars_core.rankbench.blocks import Block, runs_of
from mars_core.rankbench.cells import BATCH, RULES
from mars_core.rankbench.data import TaskData
from mars_core.rankbench.rewind import rewind_time
from mars_core.ranks import RankPair
from mars_core.rates import one_rate
from mars_core.training.recipe import Recipe
from mars_core.training.schedule import geometric_steps

FIRST_CHECKPOINT = 4
EVALUATION_BATCH = 64
WIDTHS = {"cpu": 10, "cuda": 96}
"""Runs side by side, by kind of device."""
Batches = list[tuple[dict[str, Tensor], Sequence[str]]]
Snapshots = list[tuple[int, dict[int, Tensor]]]
"""Step, and flat weights by number of the run."""


@dataclass(frozen=True)
class Bench:
    """What a block is trained with."""

    base: Base
    data: TaskData

    @property
    def device(self) -> torch.device:
        """Where the backbone lies."""
        return next(self.base.model.parameters()).device

    @property
    def width(self) -> int:
        """Runs that are trained side by side."""
        return WIDTHS[self.device.type]

    def train_steps(self, block: Block) -> Callable[[int], Iterator[list[dict[str, Tensor]]]]:
        """Batches of each step; no sample twice, the order by the block's seed."""
        order = random.Random(f"order-{block.seed}").sample(range(len(self.data.train)), block.steps * BATCH)

        def steps(done: int) -> Iterator[list[dict[str, Tensor]]]:
            for start in range(done * BATCH, len(order), BATCH):
                yield [self._collated([self.data.train[i] for i in order[start : start + BATCH]])]

        return steps

    def batches(self, samples: Sequence[Encoded]) -> Batches:
        """Evaluation batches."""
        return [
            (self._collated(part), [item.sample.task for item in part])
            for part in (samples[at : at + EVALUATION_BATCH] for at in range(0, len(samples), EVALUATION_BATCH))
        ]

    def _collated(self, samples: Sequence[Encoded]) -> dict[str, Tensor]:
        batch = collate(samples, self.base.pad_token_id)
        return {name: value.to(self.device) for name, value in batch.items()}


def train_block(
    bench: Bench,
    block: Block,
    best: Mapping[RankPair, float],
    *,
    on_step: Callable[[int], object] | None = None,
) -> pd.DataFrame:
    """Checkpoints of every run of a block, one row each.

    Columns: rule, kind, schedule, horizon, seed, r_me, r_llm, peak_lr, trainable_parameters, step, train_loss,
    val_loss, val_accuracy, lr, grad_norm_me, grad_norm_llm, clipped_share; in last rows test_loss and test_accuracy of
    full runs, and rewind_me and rewind_llm where the block is timed. A run that diverged ends with a row without
    losses.
    """
    recipe = Recipe(batch_size=BATCH, max_tokens=512, lora_alpha=RULES[block.rule], schedule=block.schedule)
    runs = [PackRun(pair, block.seed, one_rate(rate)) for pair, rate in runs_of(block, best)]
    snapshots: Snapshots = []
    validation = bench.batches(bench.data.validation)
    keep = block.timed
    trained = train_pack(
        bench.base.model,
        bench.base.partition,
        runs,
        train_steps=bench.train_steps(block),
        validation=lambda: validation,
        recipe=recipe,
        horizon=block.steps,
        checkpoint_steps=geometric_steps(FIRST_CHECKPOINT, block.steps, per_doubling=1),
        adapter_batches=AdapterBatches(bench.width),
        on_step=on_step,
        on_checkpoint=(lambda state: snapshots.append(_snapshot(state))) if keep else None,
    )
    rows = _rows(bench, block, runs, trained)
    if block.kind in ("rates", "judge"):
        _add_test(rows, bench, runs, trained, recipe)
    if keep:
        _add_rewind(rows, bench, runs, trained, snapshots, validation, recipe)
    return pd.DataFrame([row for own in rows for row in own])


def _snapshot(state: PackState) -> tuple[int, dict[int, Tensor]]:
    suffix = ".weights"
    weights = {int(name.removesuffix(suffix)): flat for name, flat in state.tensors.items() if name.endswith(suffix)}
    return state.step, weights


Rows = list[list[dict[str, object]]]


def _rows(bench: Bench, block: Block, runs: Sequence[PackRun], trained: TrainedPack) -> Rows:
    found: Rows = []
    for run, result in zip(runs, trained.runs, strict=True):
        assert run.learning_rates is not None
        own: dict[str, object] = {
            "rule": block.rule,
            "kind": block.kind,
            "schedule": block.schedule,
            "horizon": block.steps,
            "seed": block.seed,
            "r_me": run.pair.r_me,
            "r_llm": run.pair.r_llm,
            "peak_lr": run.learning_rates.llm,
            "trainable_parameters": trainable_parameters(bench.base.partition, run.pair),
        }
        rows = [
            own
            | {
                "step": checkpoint.step,
                "train_loss": checkpoint.train_loss,
                "val_loss": checkpoint.val_loss,
                "val_accuracy": checkpoint.val_accuracy,
                "lr": checkpoint.lr,
                "grad_norm_me": checkpoint.grad_norm_me,
                "grad_norm_llm": checkpoint.grad_norm_llm,
                "clipped_share": checkpoint.clipped_share,
            }
            for checkpoint in result.checkpoints
        ]
        if result.diverged_at is not None:
            rows.append(own | {"step": result.diverged_at, "val_loss": math.nan})
        found.append(rows)
    return found


def _ended(trained: TrainedPack) -> list[int]:
    return [number for number, run in enumerate(trained.runs) if run.diverged_at is None]


def _add_test(rows: Rows, bench: Bench, runs: Sequence[PackRun], trained: TrainedPack, recipe: Recipe) -> None:
    ended = _ended(trained)
    scores = _scores(bench, [(runs[n], trained.weights[n]) for n in ended], bench.batches(bench.data.test), recipe)
    for number, score in zip(ended, scores, strict=True):
        rows[number][-1] |= {"test_loss": score.loss, "test_accuracy": score.accuracy}


def _add_rewind(
    rows: Rows,
    bench: Bench,
    runs: Sequence[PackRun],
    trained: TrainedPack,
    snapshots: Snapshots,
    validation: Batches,
    recipe: Recipe,
) -> None:
    ended = _ended(trained)
    steps = [0, *(step for step, _ in snapshots)]
    for module in ("me", "llm"):
        able = [n for n in ended if getattr(runs[n].pair, f"r_{module}") > 0]
        mixed = [
            (runs[n], _mixed(bench, runs[n], trained.weights[n], weights[n] if weights else None, module, recipe))
            for n in able
            for weights in (None, *(kept for _, kept in snapshots[:-1]))
        ]
        scores = iter(_scores(bench, mixed, validation, recipe))
        for n in able:
            final = rows[n][-1]["val_loss"]
            assert isinstance(final, float)
            losses = [next(scores).loss for _ in steps[:-1]]
            rows[n][-1][f"rewind_{module}"] = rewind_time(steps, [*losses, final], final)


def _mixed(bench: Bench, run: PackRun, final: Tensor, snapshot: Tensor | None, module: str, recipe: Recipe) -> Tensor:
    """Final weights with those of one module taken from a snapshot; None: from step 0, where a product B A is zero."""
    layout = run.layout(bench.base.partition, recipe)
    then = by_group(torch.zeros_like(final) if snapshot is None else snapshot, layout)
    own = {"me"} if module == "me" else {"projector", "llm"}
    return flatten({group: then[group] if group in own else part for group, part in by_group(final, layout).items()})


def _scores(bench: Bench, runs: Sequence[tuple[PackRun, Tensor]], batches: Batches, recipe: Recipe) -> list[Score]:
    if not runs:
        return []
    return score_adapters(bench.base.model, bench.base.partition, runs, batches, recipe, width=bench.width)
