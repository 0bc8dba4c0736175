"""Do ranks of single layers beat a pair? HyDRA and its rivals on the demo, at equally many trainable parameters.

Every run is a calibration run of the demo by the packed engine: 256 steps of 8 samples, scored on the 256 validation
samples. For each pair, in this order:

1. probe    the pair's layers, with one seed; every method shares the pair's budget out by it
2. tune     every method at every rate, with a seed of its own, in one pack
3. measure  every method at its own best rate, with seeds that nothing was chosen by, a pack for each seed
4. search   16 schedules of HyDRA's solution space in a pack, for its performance model

Stored cells are not trained again, so the command can be stopped and started at will.

    python benchmarks/layer_ranks.py                     # all cells
    python benchmarks/layer_ranks.py --only uniform      # cells of one pair (uniform or mars)
    python benchmarks/layer_ranks.py --most 1            # so many cells, then stop
    python benchmarks/layer_ranks.py --list              # what there is and what is missing
    python benchmarks/layer_ranks.py --report            # tables of what there is, recorded and in the docs
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from demo_rank_spread import Bench, Settings, train_missing
from doc_table import DOCS, markdown, with_table
from scipy import stats

from mars_core import __version__
from mars_core.data.collate import collate
from mars_core.layerwise.budget import Budget
from mars_core.layerwise.measure_importance import weight_importance
from mars_core.layerwise.measure_variance import explained_variance
from mars_core.layerwise.performance.encoding import encode
from mars_core.layerwise.performance.predictors import PREDICTORS
from mars_core.layerwise.performance.space import draw_ranks
from mars_core.layerwise.performance.validate import cross_validate
from mars_core.layerwise.places import MODULES, places_of
from mars_core.layerwise.probe import Probe, ProbedLayer, probe_table, read_probes
from mars_core.layerwise.registry import METHODS, allocator
from mars_core.models.lora import layer_ranks, trainable_parameters
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.run import PackRun
from mars_core.packing.train import TrainedPack, train_pack
from mars_core.ranks import LayerRanks, RankPair
from mars_core.rate_search import best_of_range
from mars_core.rate_search.design import rounded
from mars_core.rates import one_rate
from mars_core.training.finetune import FinalSettings, Samples, finetune
from mars_core.training.methods import AdaLora
from mars_core.training.methods.adalora import triplet_importance
from mars_core.training.recipe import Recipe

RUNS = Path(__file__).parent / "results" / "layer_ranks"
RECORD = Path(__file__).parent / "results" / "layer_ranks.json"
PAGE, MARK = DOCS / "layer-wise-ranks.md", "layer-ranks"
PAIRS = {"uniform": RankPair(8, 8), "mars": RankPair(2, 16)}
"""A uniform rank, and the pair that a recorded demo chose."""
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
PROBE_RATE = 2e-3
PROBE_SEED, TUNE_SEED, SEEDS = 90, 91, (0, 1, 2, 3)
STEPS = 256
SEARCH_PACKS, SEARCH_EACH = 4, 16
RECIPE = Recipe(max_tokens=512)


@dataclass(frozen=True)
class Cell:
    """Something to be trained and stored. kind: probe, tune, measure or search. number: a seed, or of the search's
    packs."""

    pair: str
    kind: str
    number: int = 0

    @property
    def file(self) -> Path:
        """Where its result is stored."""
        return RUNS / f"{self.pair}-{self.kind}-{self.number}.parquet"


def cells(only: str | None = None) -> Iterator[Cell]:
    """All cells in order; each reads what those before it stored."""
    for pair in [only] if only else PAIRS:
        yield Cell(pair, "probe")
        yield Cell(pair, "tune")
        for seed in SEEDS:
            yield Cell(pair, "measure", seed)
    for pair in [only] if only else PAIRS:
        for number in range(SEARCH_PACKS):
            yield Cell(pair, "search", number)


def train(bench: Bench, runs: Sequence[PackRun], seed: int, *, record_norms: bool = False) -> TrainedPack:
    """Train a pack in the order of samples that a seed gives."""
    batches = list(bench.batches(Settings(RECIPE, STEPS, len(bench.train), len(bench.validation)), seed))
    return train_pack(
        bench.base.model,
        bench.base.partition,
        runs,
        train_steps=lambda done: ([batch] for batch in batches[done:]),
        validation=lambda: bench.validation_batches(shuffled=False),
        recipe=RECIPE,
        horizon=STEPS,
        checkpoint_steps=(STEPS // 4, STEPS),
        adapter_batches=AdapterBatches(8, 2),
        record_norms=record_norms,
    )


def losses(trained: TrainedPack) -> list[float]:
    """Validation loss of each run at its end, not a number where it diverged."""
    return [math.nan if run.diverged_at is not None else run.checkpoints[-1].val_loss for run in trained.runs]


def probe(bench: Bench, pair: RankPair) -> list[Probe]:
    """Everything that any method asks of the layers."""
    run = PackRun(pair, PROBE_SEED, one_rate(PROBE_RATE))
    (norms,) = train(bench, [run], PROBE_SEED, record_norms=True).norms
    assert norms is not None
    by_layer = {norm.layer: norm for norm in norms}
    layers = [place.layer for module in MODULES for place in places_of(bench.base.partition, module)]
    settings = Settings(RECIPE, 8, len(bench.train), len(bench.validation))
    batches = list(bench.batches(settings, PROBE_SEED))
    importance = weight_importance(bench.base.model, layers, ([batch] for batch in batches))
    single = (collate([sample], bench.base.pad_token_id) for sample in bench.train[:64])
    variance = explained_variance(bench.base.model, layers, single, 2 * max(pair))
    triplets = adalora_triplets(bench, pair)
    probes = []
    for module in MODULES:
        places, rank = places_of(bench.base.partition, module), pair.rank(module)
        found = [
            ProbedLayer(
                place,
                by_layer[place.layer].a,
                by_layer[place.layer].b,
                by_layer[place.layer].squared / (rank * place.cost),
                importance[place.layer],
                variance[place.layer],
                triplets[place.layer],
            )
            for place in places
        ]
        probes.append(Probe(module, tuple(found)))
    return probes


def adalora_triplets(bench: Bench, pair: RankPair) -> dict[str, tuple[float, ...]]:
    """Importance of triplets at the end of an AdaLoRA run at the larger rank of the pair."""
    method, recipe = AdaLora(target_rank=max(pair)), Recipe(max_tokens=512, learning_rate=PROBE_RATE)
    wrapped = method.wrap(bench.base.model, bench.base.partition, seed=PROBE_SEED, recipe=recipe, steps=STEPS)
    with tempfile.TemporaryDirectory() as folder:
        finetune(
            wrapped,
            Samples(
                bench.train,  # type: ignore[arg-type] - a list is a dataset
                lambda items: collate(items, bench.base.pad_token_id),
                lambda: bench.validation_batches(shuffled=False),
            ),
            FinalSettings(recipe, STEPS, PROBE_SEED, Path(folder), evaluations=1),
            method=method,
            partition=bench.base.partition,
        )
    try:
        return triplet_importance(wrapped)
    finally:
        method.unwrap(wrapped)


def schedules(bench: Bench, name: str) -> dict[str, LayerRanks]:
    """The ranks that every method gives a pair."""
    pair, probes = PAIRS[name], stored_probe(name)
    found = {}
    for method in METHODS:
        ranks = layer_ranks(bench.base.partition, pair)
        for module, one in probes.items():
            ranks |= allocator(method).allocate(one, Budget(pair.rank(module)))  # type: ignore[arg-type]
        found[method] = LayerRanks.of(ranks)
    return found


def stored_probe(name: str) -> dict[str, Probe]:
    """The probe of a pair."""
    return read_probes(pq.read_table(Cell(name, "probe").file))


def best_rates(name: str) -> dict[str, float]:
    """Each method's own best rate, by a parabola through the lowest of the tuning runs and its neighbours."""
    tuned = pd.read_parquet(Cell(name, "tune").file).dropna(subset="loss")
    return {
        str(method): rounded(best_of_range(dict(zip(own["rate"], own["loss"], strict=True))))
        for method, own in tuned.groupby("method", sort=False)
    }


def tune(bench: Bench, cell: Cell) -> pd.DataFrame:
    """Every method at every rate."""
    found = schedules(bench, cell.pair)
    wanted = [(method, rate) for method in found for rate in RATES]
    runs = [PackRun(PAIRS[cell.pair], TUNE_SEED, one_rate(rate), None, found[method]) for method, rate in wanted]
    return rows(bench, wanted, runs, losses(train(bench, runs, TUNE_SEED)))


def measure(bench: Bench, cell: Cell) -> pd.DataFrame:
    """Every method at its own best rate, with one seed."""
    found = schedules(bench, cell.pair)
    wanted = list(best_rates(cell.pair).items())
    runs = [PackRun(PAIRS[cell.pair], cell.number, one_rate(rate), None, found[method]) for method, rate in wanted]
    return rows(bench, wanted, runs, losses(train(bench, runs, cell.number)))


def search(bench: Bench, cell: Cell) -> pd.DataFrame:
    """Schedules that are drawn from HyDRA's solution space, at the uniform schedule's rate."""
    pair, probes = PAIRS[cell.pair], stored_probe(cell.pair)
    rate, random = best_rates(cell.pair)["uniform"], np.random.default_rng(cell.number)
    drawn = []
    for _ in range(SEARCH_EACH):
        ranks = layer_ranks(bench.base.partition, pair)
        for module, one in probes.items():
            ranks |= draw_ranks(one, Budget(pair.rank(module)), random)  # type: ignore[arg-type]
        drawn.append(LayerRanks.of(ranks))
    runs = [PackRun(pair, TUNE_SEED, one_rate(rate), None, one) for one in drawn]
    table = rows(bench, [("drawn", rate)] * len(runs), runs, losses(train(bench, runs, TUNE_SEED)))
    return table.assign(ranks=[json.dumps(dict(one.by_layer)) for one in drawn])


def rows(bench: Bench, wanted: Sequence[tuple[str, float]], runs: Sequence[PackRun], ends: Sequence[float]) -> Any:
    """A row per run."""
    return pd.DataFrame(
        {
            "method": method,
            "rate": rate,
            "seed": run.seed,
            "loss": loss,
            "trainable_parameters": trainable_parameters(bench.base.partition, run.ranks),
            "code_version": __version__,
            "torch_version": torch.__version__,
        }
        for (method, rate), run, loss in zip(wanted, runs, ends, strict=True)
    )


KINDS: dict[str, Callable[[Bench, Cell], pd.DataFrame]] = {"tune": tune, "measure": measure, "search": search}


def train_cell(bench: Bench, cell: Cell) -> None:
    """Train a cell and store it in one step."""
    temporary = cell.file.with_suffix(".part")
    if cell.kind == "probe":
        pq.write_table(probe_table(probe(bench, PAIRS[cell.pair])), temporary)
    else:
        KINDS[cell.kind](bench, cell).to_parquet(temporary, index=False)
    temporary.replace(cell.file)


def summarise() -> list[dict[str, Any]]:
    """Each method against the uniform ranks of its pair, paired by seed, with 95% intervals (Student's t)."""
    found = []
    for name, pair in PAIRS.items():
        files = [Cell(name, "measure", seed).file for seed in SEEDS]
        stored = [pd.read_parquet(file) for file in files if file.exists()]
        if not stored:
            continue
        table = pd.concat(stored).pivot(index="seed", columns="method", values="loss")
        parameters = pd.concat(stored).groupby("method")["trainable_parameters"].first()
        rates = best_rates(name)
        for method in METHODS:
            differences = (table[method] - table["uniform"]).dropna()
            found.append(
                {
                    "pair": list(pair),
                    "method": method,
                    "rate": rates[method],
                    "seeds": len(differences),
                    "loss": float(table[method].mean()),
                    "difference": float(differences.mean()),
                    "half_width": half_width(differences.to_numpy()),
                    "trainable_parameters": int(parameters[method]),
                }
            )
    return found


def half_width(values: Any) -> float | None:
    """Half of the 95% interval of a mean; None with fewer than two values."""
    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


def models_of(name: str) -> dict[str, Any] | None:
    """Errors of each performance model on the drawn schedules of a pair, five-fold; None while there are too few."""
    files = [Cell(name, "search", number).file for number in range(SEARCH_PACKS)]
    stored = [pd.read_parquet(file) for file in files if file.exists()]
    table = pd.concat(stored).dropna(subset="loss") if stored else pd.DataFrame()
    if len(table) < SEARCH_PACKS * SEARCH_EACH:
        return None
    probes = stored_probe(name)
    pair = PAIRS[name]
    drawn = [json.loads(text) for text in table["ranks"]]
    x = encode(drawn, list(probes.values()), [pair.rank(module) for module in probes])
    y = table[["loss"]].to_numpy()
    found = {}
    for model, make in PREDICTORS.items():
        try:
            found[model] = cross_validate(make, x, y).to_json()
        except ValueError as error:
            found[model] = str(error)  # LightGBM is optional
    return found


def report() -> None:
    """Print and record what the stored cells say."""
    record = {
        "command": "python benchmarks/layer_ranks.py",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"mars": __version__, "torch": torch.__version__, "Python": platform.python_version()},
        "cells": [cell.file.stem for cell in cells() if cell.file.exists()],
        "results": summarise(),
        "performance_models": {name: found for name in PAIRS if (found := models_of(name))},
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), MARK, table(record)), encoding="utf-8")
    print(table(record))


def table(record: dict[str, Any]) -> str:
    """What the page says of a record."""
    header = ["pair", "ranks", "parameters", "learning rate", "seeds", "loss", "against uniform ranks"]
    lines = []
    for row in record["results"]:
        width = row["half_width"]
        against = "" if row["method"] == "uniform" else f"{row['difference']:+.4f}"
        against += f" ± {width:.4f}" if against and width is not None else ""
        pair = f"({row['pair'][0]}, {row['pair'][1]})"
        shown = [pair, row["method"], f"{row['trainable_parameters']:,}", f"{row['rate']:g}", str(row["seeds"])]
        lines.append([*shown, f"{row['loss']:.4f}", against])
    parts = [markdown(header, lines)] if lines else ["Not run yet."]
    for name, found in record["performance_models"].items():
        errors = [[model, f"{one['mse']:.2f}", f"{one['mae']:.2f}"] for model, one in found.items() if "mse" in one]
        parts.append(f"Performance models on {SEARCH_PACKS * SEARCH_EACH} schedules of {PAIRS[name]}, five-fold:")
        parts.append(markdown(["model", "MSE", "MAE"], errors))
    return "\n\n".join(parts)


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PAIRS, help="cells of this pair alone")
    parser.add_argument("--most", type=int, help="train so many cells, then stop")
    parser.add_argument("--list", action="store_true", help="say what is stored and train nothing")
    parser.add_argument("--report", action="store_true", help="print and record what the stored cells say")
    options = parser.parse_args()
    if options.list:
        for cell in cells(options.only):
            print("stored " if cell.file.exists() else "missing", cell.file.name)
        return
    if not options.report:
        missing = [cell for cell in cells(options.only) if not cell.file.exists()][: options.most]
        train_missing(missing, Settings(RECIPE, STEPS, 4096, 256), train_cell)
    report()


if __name__ == "__main__":
    main()
