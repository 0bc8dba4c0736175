"""Do ranks matter in the demo? Validation perplexity over rank pairs, against its spread over seeds.

Each run is what a calibration run of the demo is: LoRA on the shipped backbone, Adam, batch 8, cosine with
10% warm-up over 256 steps, scored on the 256 validation samples at the end. A seed fixes the adapters'
initial weights and the choice and order of the training samples. As a control every trained model is also
scored with the validation pictures exchanged among the samples.

    python benchmarks/demo_rank_spread.py --seeds 0 1 2

Runs that the result file already holds for the same settings, backbone and data are not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from mars_core.data.collate import collate
from mars_core.data.encode import Encoded, encode_sample
from mars_core.data.readers import read_samples
from mars_core.demo import DemoData, build_demo_data, demo_backbone_path
from mars_core.evaluation.answer_loss import token_losses
from mars_core.evaluation.scores import Evaluation, evaluate
from mars_core.models.loading import Base, load_base
from mars_core.models.lora import add_adapters, remove_adapters
from mars_core.ranks import RankPair
from mars_core.training.optimizer import make_optimizer, make_schedule
from mars_core.training.recipe import Recipe

RESULT = Path(__file__).parent / "results" / "demo_rank_spread.json"
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Settings:
    """What all runs share. steps: horizon and length of a run; n_train: training samples to draw from."""

    recipe: Recipe
    steps: int
    n_train: int
    n_validation: int


@dataclass(frozen=True)
class Bench:
    """Backbone and encoded data."""

    base: Base
    train: list[Encoded]
    validation: list[Encoded]

    def batches(self, settings: Settings, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        """Training batches without a repeated sample, chosen and ordered by the seed."""
        size = settings.recipe.batch_size
        order = random.Random(seed).sample(range(len(self.train)), settings.steps * size)
        for start in range(0, len(order), size):
            yield collate([self.train[i] for i in order[start : start + size]], self.base.pad_token_id)

    def validation_batches(self, *, shuffled: bool) -> Iterator[tuple[dict[str, torch.Tensor], Sequence[str]]]:
        """Validation batches; shuffled: with each sample's picture taken from another sample of its batch."""
        for start in range(0, len(self.validation), EVALUATION_BATCH):
            part = self.validation[start : start + EVALUATION_BATCH]
            batch = collate(part, self.base.pad_token_id)
            if shuffled:
                batch["pixel_values"] = batch["pixel_values"].roll(len(part) // 2, 0)
            yield batch, [item.sample.task for item in part]


def load_bench(data: DemoData, settings: Settings) -> Bench:
    """Load backbone and data; every sample is encoded once."""
    base = load_base(str(demo_backbone_path()), device=torch.device("cpu"), dtype=torch.float32)
    train, validation = (
        [encode_sample(sample, base.processor) for sample in read_samples(path, data.images)]
        for path in (data.train, data.validation)
    )
    return Bench(base, train, validation)


class Stored(Protocol):
    """What a benchmark trains and keeps in a file of its own."""

    @property
    def file(self) -> Path:
        """Where it is kept."""


Cell = TypeVar("Cell", bound=Stored)


def train_missing(missing: Sequence[Cell], settings: Settings, train: Callable[[Bench, Cell], None]) -> None:
    """Train cells on the demo's data, in order; `train` stores each."""
    with tempfile.TemporaryDirectory() as folder:
        samples = {"n_train": settings.n_train, "n_validation": settings.n_validation}
        bench = load_bench(build_demo_data(Path(folder), **samples, n_test=512), settings)
        for cell in missing:
            started = time.perf_counter()
            cell.file.parent.mkdir(parents=True, exist_ok=True)
            train(bench, cell)
            print(f"{cell.file.name}: {time.perf_counter() - started:.0f} s", flush=True)


def measure(bench: Bench, settings: Settings, pair: RankPair, seed: int) -> dict[str, Any]:
    """Train one pair with one seed and score it with its own and with exchanged pictures."""
    model = add_adapters(bench.base.model, bench.base.partition, pair, seed=seed)
    started = time.perf_counter()
    train(model, bench, settings, seed)
    seconds = time.perf_counter() - started
    true, shuffled = (evaluate(model, bench.validation_batches(shuffled=flag)) for flag in (False, True))
    remove_adapters(model)
    return {
        "r_me": pair.r_me,
        "r_llm": pair.r_llm,
        "seed": seed,
        "perplexity": true.overall.perplexity,
        "shuffled_perplexity": shuffled.overall.perplexity,
        "accuracy": true.overall.accuracy,
        "by_task": by_task(true),
        "ms_per_step": 1000 * seconds / settings.steps,
    }


def train(model: Any, bench: Bench, settings: Settings, seed: int) -> None:
    """Plain training loop: token losses, clipping at norm 1, Adam, cosine."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer([{"params": parameters}], settings.recipe)
    schedule = make_schedule(optimizer, settings.recipe, settings.steps)
    model.train()
    for batch in bench.batches(settings, seed):
        loss = token_losses(model, batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)


def by_task(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Perplexity and accuracy by task type."""
    return {
        task: {"perplexity": score.perplexity, "accuracy": score.accuracy} for task, score in evaluation.by_task.items()
    }


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Main effects of both ranks against the seeds' standard deviation.

    A main effect is the range over one rank of the mean perplexity at that rank (over the other rank and over
    seeds), once over all ranks and once without the lowest. seed_sd: deviation of a single run, pooled over pairs.
    """
    cells: dict[tuple[int, int], list[float]] = {}
    for run in runs:
        cells.setdefault((run["r_me"], run["r_llm"]), []).append(run["perplexity"])
    mean = {pair: statistics.fmean(values) for pair, values in cells.items()}
    repeated = [values for values in cells.values() if len(values) > 1]
    freedom = sum(len(values) - 1 for values in repeated)
    seed_sd = math.sqrt(sum(statistics.variance(v) * (len(v) - 1) for v in repeated) / freedom) if freedom else None
    effects = {
        name: {
            label: main_effect(mean, axis, above_lowest=above)
            for label, above in (("all", False), ("above_lowest", True))
        }
        for axis, name in enumerate(("r_me", "r_llm"))
    }
    return {
        "mean_perplexity": {f"{me},{llm}": value for (me, llm), value in sorted(mean.items())},
        "spread_over_pairs": max(mean.values()) / min(mean.values()) - 1,
        "seed_sd": seed_sd,
        "main_effect": effects,
        "main_effect_in_seed_sd": {
            name: {label: value["range"] / seed_sd for label, value in effect.items()}
            for name, effect in effects.items()
        }
        if seed_sd
        else None,
        "mean_shuffled_over_true": statistics.fmean(r["shuffled_perplexity"] / r["perplexity"] for r in runs),
        "mean_accuracy": statistics.fmean(run["accuracy"] for run in runs),
        "median_ms_per_step": statistics.median(run["ms_per_step"] for run in runs),
    }


def main_effect(mean: dict[tuple[int, int], float], axis: int, *, above_lowest: bool) -> dict[str, Any]:
    """Mean perplexity per rank of one axis, and the range of these means."""
    lowest = min(min(pair) for pair in mean)
    pairs = [pair for pair in mean if not above_lowest or lowest not in pair]
    margins = {
        rank: statistics.fmean(mean[pair] for pair in pairs if pair[axis] == rank)
        for rank in sorted({pair[axis] for pair in pairs})
    }
    return {"margins": margins, "range": max(margins.values()) - min(margins.values())}


def digest(path: Path) -> str:
    """Short hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def main() -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "mars-demo-data")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Settings(Recipe(learning_rate=options.lr, batch_size=8), options.steps, n_train=4096, n_validation=256)
    data = build_demo_data(options.data, n_train=settings.n_train, n_validation=settings.n_validation)
    header = {
        "settings": {"learning_rate": options.lr, "batch_size": 8, "steps": options.steps},
        "backbone": digest(demo_backbone_path() / "model.safetensors"),
        "data": digest(data.train),
    }
    runs = earlier_runs(options.out, header)
    bench = load_bench(data, settings)
    pairs = [RankPair(me, llm) for me in options.ranks for llm in options.ranks]
    for seed in options.seeds:
        for pair in pairs:
            if any((r["r_me"], r["r_llm"], r["seed"]) == (pair.r_me, pair.r_llm, seed) for r in runs):
                continue
            runs.append(measure(bench, settings, pair, seed))
            write(options.out, {**header, "runs": runs})
            print(f"{pair} seed {seed}: perplexity {runs[-1]['perplexity']:.4f}", flush=True)
    summary = summarise(runs)
    write(options.out, {**header, "machine": machine(options.threads), "summary": summary, "runs": runs})
    print(json.dumps(summary, indent=1))


def earlier_runs(out: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs in the result file, when it was made with the same settings, backbone and data."""
    if not out.is_file():
        return []
    earlier = json.loads(out.read_text())
    same = all(earlier.get(key) == value for key, value in header.items())
    runs: list[dict[str, Any]] = earlier["runs"] if same else []
    return runs


def machine(threads: int) -> dict[str, Any]:
    """What the runs ran on."""
    return {
        "processor": platform.machine(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write(out: Path, result: dict[str, Any]) -> None:
    """Write the result file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
