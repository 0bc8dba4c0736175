"""Rows of a cell as training would store them, from a loss that is known."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mars_core.rankbench.blocks import Block, blocks_of, runs_of
from mars_core.rankbench.cells import BATCH, Cell
from mars_core.training.schedule import geometric_steps

BEST_RATE = 7e-3


def true_loss(r_me: int, r_llm: int, samples: float, rate: float) -> float:
    """Law P with a valley in the learning rate; rank 0 is as rank 1/4."""
    ranks = 0.12 * max(r_me, 0.25) ** -0.6 + 0.04 * max(r_llm, 0.25) ** -0.6
    return 0.4 + ranks + 3.0 * samples**-0.5 + 0.05 * np.log(rate / BEST_RATE) ** 2


def planted_block(block: Block, noise: float) -> pd.DataFrame:
    """Checkpoints of every run of a block; the ends at the law's value with noise of a run and of its seed."""
    rng = np.random.default_rng([block.seed, len(block.kind), len(block.rule), block.steps])
    of_seed = noise * rng.normal()
    rows = []
    best = dict.fromkeys(block.pairs, BEST_RATE)
    for pair, rate in runs_of(block, best):
        of_run = noise * rng.normal()
        for step in geometric_steps(4, block.steps, per_doubling=1):
            loss = true_loss(*pair, step * BATCH, rate) + of_seed + of_run
            row = {
                "rule": block.rule,
                "kind": block.kind,
                "schedule": block.schedule,
                "horizon": block.steps,
                "seed": block.seed,
                "r_me": pair.r_me,
                "r_llm": pair.r_llm,
                "peak_lr": rate,
                "trainable_parameters": 100 * pair.r_me + 120 * pair.r_llm,
                "step": step,
                "val_loss": loss,
                "lr": rate,
            }
            if step == block.steps and block.kind in ("rates", "judge"):
                row |= {"test_loss": loss + 0.01, "test_accuracy": 0.5}
            if step == block.steps and block.timed:
                row |= {"rewind_me": 10.0 * max(pair.r_me, 1) ** 0.3, "rewind_llm": 5.0}
                row |= {} if pair.r_me else {"rewind_me": np.nan}
            rows.append(row)
    return pd.DataFrame(rows)


def planted_cell(cell: Cell, noise: float = 0.003) -> pd.DataFrame:
    """All blocks of a cell."""
    return pd.concat([planted_block(block, noise) for block in blocks_of(cell)], ignore_index=True)
