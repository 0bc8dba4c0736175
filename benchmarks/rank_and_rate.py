"""How much of the effect of rank is the learning rate? Calibration runs of the demo over ranks, rates and alpha rules.

Each run is a calibration run of the demo by the packed engine: 256 steps of 8 samples, cosine with 10% warm-up, scored
on the 256 validation samples at every checkpoint. A cell is one pack: one alpha rule, seed, horizon and group of pairs,
every pair at every rate. Stored cells are not trained again, so the command can be stopped and started at will.

    python benchmarks/rank_and_rate.py            # all cells, the table's pairs first
    python benchmarks/rank_and_rate.py --list     # what there is and what is missing
    python benchmarks/rank_and_rate.py --report   # tables of what there is, recorded and in the docs
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from demo_rank_spread import Bench, Settings, train_missing
from doc_table import DOCS, with_table
from rank_and_rate_summary import markdown, summarise

from mars_core import __version__
from mars_core.models.lora import trainable_parameters
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.run import PackRun
from mars_core.packing.train import TrainedPack, train_pack
from mars_core.ranks import AlphaRule, RankPair
from mars_core.rates import one_rate
from mars_core.training.recipe import Recipe
from mars_core.training.schedule import geometric_steps

RUNS = Path(__file__).parent / "results" / "rank_and_rate"
RECORD = Path(__file__).parent / "results" / "rank_and_rate.json"
PAGE, MARK = DOCS / "ranks-and-learning-rates.md", "ranks-and-rates"
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
RULES: dict[str, AlphaRule] = {"2r": "2r", "constant": 16.0, "sqrt": "sqrt"}
RANKS = (2, 4, 8, 16)
TABLE = tuple(RankPair(*pair) for pair in [(2, 2), (2, 16), (4, 4), (8, 8), (16, 2), (16, 16)])
REST = tuple(RankPair(a, b) for a in RANKS for b in RANKS if RankPair(a, b) not in TABLE)
ZERO = tuple(RankPair(*pair) for pair in [(0, 2), (0, 8), (0, 16), (2, 0), (8, 0), (16, 0)])
GROUPS = {"table": TABLE, "rest": REST, "zero": ZERO}
STEPS, SHORT_STEPS = 256, 64
RECIPE = Recipe(max_tokens=512)


@dataclass(frozen=True)
class Cell:
    """One pack."""

    rule: str
    seed: int
    group: str
    steps: int = STEPS

    @property
    def file(self) -> Path:
        """Where its checkpoints are stored."""
        return RUNS / f"{self.rule}-{self.group}-{self.steps}-seed{self.seed}.parquet"

    @property
    def runs(self) -> list[PackRun]:
        """Every pair of the group at every rate."""
        return [
            PackRun(pair, self.seed, one_rate(rate), RULES[self.rule]) for pair in GROUPS[self.group] for rate in RATES
        ]


def cells() -> Iterator[Cell]:
    """All cells, in the order in which they are worth having."""
    for seed in range(3):
        for rule in RULES:
            yield Cell(rule, seed, "table")
    for seed in range(3):
        yield Cell("2r", seed, "table", SHORT_STEPS)
    for seed in range(3):
        yield Cell("2r", seed, "rest")
    yield Cell("2r", 0, "zero")
    for rule in ("constant", "sqrt"):
        yield Cell(rule, 0, "rest")


def train(bench: Bench, cell: Cell) -> TrainedPack:
    """Train the pack of a cell."""
    settings = Settings(RECIPE, cell.steps, len(bench.train), len(bench.validation))
    batches = list(bench.batches(settings, cell.seed))
    return train_pack(
        bench.base.model,
        bench.base.partition,
        cell.runs,
        train_steps=lambda done: ([batch] for batch in batches[done:]),
        validation=lambda: bench.validation_batches(shuffled=False),
        recipe=RECIPE,
        horizon=cell.steps,
        checkpoint_steps=geometric_steps(8, cell.steps, per_doubling=1),
        adapter_batches=AdapterBatches(8, 2),
    )


def rows_of(bench: Bench, cell: Cell, trained: TrainedPack) -> pd.DataFrame:
    """One row for every checkpoint; of a run that diverged, one without a loss at the step where it did."""
    rows = []
    for run, result in zip(cell.runs, trained.runs, strict=True):
        assert run.learning_rates is not None
        own = {
            "rule": cell.rule,
            "r_me": run.pair.r_me,
            "r_llm": run.pair.r_llm,
            "seed": run.seed,
            "peak_lr": run.learning_rates.llm,
            "horizon": cell.steps,
            "trainable_parameters": trainable_parameters(bench.base.partition, run.pair),
        }
        rows += [own | asdict(checkpoint) for checkpoint in result.checkpoints]
        if result.diverged_at is not None:
            rows.append(own | {"step": result.diverged_at, "val_loss": math.nan})
    table = pd.DataFrame(rows).drop(columns=["wall_seconds", "peak_memory_bytes", "val_objective"])
    return table.assign(code_version=__version__, torch_version=torch.__version__)


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say what is stored and train nothing")
    missing = [cell for cell in cells() if not cell.file.exists()]
    parser.add_argument("--report", action="store_true", help="print and record what the stored runs say")
    options = parser.parse_args()
    if options.list:
        for cell in cells():
            print("missing" if cell in missing else "stored ", cell.file.name)
    elif options.report:
        report()
    else:
        train_missing(missing, Settings(RECIPE, STEPS, 4096, 256), train_cell)
        report()


def report() -> None:
    """Print and record what the stored runs say."""
    stored = [cell for cell in cells() if cell.file.exists()]
    records = summarise(pd.concat([pd.read_parquet(cell.file) for cell in stored], ignore_index=True))
    written = {
        "command": "python benchmarks/rank_and_rate.py",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"mars": __version__, "torch": torch.__version__, "Python": platform.python_version()},
        "cells": [cell.file.stem for cell in stored],
        "results": records,
    }
    RECORD.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), MARK, table(written)), encoding="utf-8")
    print(table(written))


def table(record: dict[str, Any]) -> str:
    """What the page says of a record."""
    return markdown(record["results"])


def train_cell(bench: Bench, cell: Cell) -> None:
    """Train the pack of a cell and store its table."""
    table = rows_of(bench, cell, train(bench, cell))
    temporary = cell.file.with_suffix(".part")
    table.to_parquet(temporary, index=False)
    temporary.replace(cell.file)


if __name__ == "__main__":
    main()
