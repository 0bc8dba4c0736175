"""What do ways of tuning gain and forget on the demo? E, F and O of methods by tasks.

Each method trains the demo's backbone for 128 steps of 8 samples, cosine with 10% warm-up, one seed, as its baseline of
the same name does in `mars compare`. LoRA and DoRA have a rate of 2e-3, own weights a tenth of it, as the search for a
baseline's rate begins. Target: the demo's test split by task type. Upstream: what the backbone could do
before (`mars_core.demo.upstream`). Scores are exact match, teacher-forced.

    python benchmarks/forgetting.py            # table of what is stored, recorded and in the docs
    python benchmarks/forgetting.py --train 2  # first train at most two methods that are missing (a minute each)
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_rank_spread import Bench, Settings, load_bench
from doc_table import DOCS, with_table

from mars_core import __version__
from mars_core.data.collate import collate
from mars_core.data.encode import Encoded, encode_sample
from mars_core.data.readers import read_samples
from mars_core.demo import DemoData, build_demo_data, demo_backbone_path
from mars_core.demo.upstream import build_upstream_data
from mars_core.evaluation.answer_loss import token_losses
from mars_core.evaluation.forgetting import TaskScores, failure_signs, measure
from mars_core.evaluation.scores import totals_of
from mars_core.models.loading import Base, load_base
from mars_core.training.optimizer import make_optimizer, make_schedule
from mars_core.training.recipe import Recipe
from tasks.settings.baselines import read_baseline

RECORD = Path(__file__).parent / "results" / "forgetting.json"
PAGE, MARK = DOCS / "what-it-forgets.md", "forgetting"
METHODS = ("uniform-16", "dora-16", "frozen-vision", "projector-only", "last-layer", "top-layers", "full-rank")
STEPS, SEED, EVALUATION_BATCH, UPSTREAM = 128, 0, 50, 200
RATE = 2e-3
Tasks = dict[str, tuple[str, list[Encoded]]]


def demo_data(folder: Path) -> DemoData:
    """The demo's data, in the sizes of `mars demo`."""
    return build_demo_data(folder / "data", n_train=4096, n_validation=256, n_test=512)


def tasks_of(folder: Path, processor: Any) -> Tasks:
    """Encoded samples by task, with their kind."""
    data, before = demo_data(folder), build_upstream_data(folder / "upstream", n_samples=UPSTREAM)
    found: Tasks = {}
    for sample in read_samples(data.test, data.images):
        found.setdefault(f"target: {sample.task}", ("target", []))[1].append(encode_sample(sample, processor))
    for name, path, images in (("reading", before.reading, None), ("looks", before.looks, before.images)):
        encoded = [encode_sample(sample, processor) for sample in read_samples(path, images)]
        found[name] = ("upstream", encoded)
    return found


def scores_of(model: Any, tasks: Tasks, pad: int) -> dict[str, dict[str, list[float]]]:
    """Score and answers of every sample by task."""
    found = {}
    for name, (_, samples) in tasks.items():
        totals = totals_of(model, _numbered(samples, pad))
        each = [totals[str(number)] for number in range(len(samples))]
        found[name] = {
            "score": [100.0 * one.exact / one.answers for one in each],
            "answers": [float(one.answers) for one in each],
        }
    return found


def _numbered(samples: Sequence[Encoded], pad: int) -> Iterator[tuple[dict[str, torch.Tensor], list[str]]]:
    for start in range(0, len(samples), EVALUATION_BATCH):
        part = samples[start : start + EVALUATION_BATCH]
        yield collate(part, pad), [str(start + row) for row in range(len(part))]


def train(name: str, bench: Bench) -> tuple[Any, list[float]]:
    """Train a method on a fresh backbone; returns the trained model and the training losses."""
    recipe, baseline = Recipe(max_tokens=512), read_baseline(name)
    base = fresh_base()
    wrapped = baseline.method.wrap(base.model, base.partition, seed=SEED, recipe=recipe, steps=STEPS)
    parameters = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    rate = RATE * baseline.settings.rate_share
    optimizer = make_optimizer([{"params": parameters, "lr": rate}], recipe)
    schedule = make_schedule(optimizer, recipe, STEPS)
    wrapped.train()
    losses = []
    for batch in bench.batches(Settings(recipe, STEPS, 0, 0), SEED):
        loss = token_losses(wrapped, batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return wrapped, losses


def fresh_base() -> Base:
    """The demo's backbone as it ships."""
    return load_base(str(demo_backbone_path()), device=torch.device("cpu"), dtype=torch.float32)


def described(before: dict[str, Any], after: dict[str, Any], losses: Sequence[float]) -> dict[str, Any]:
    """E, F, O and tasks with intervals, and signs."""
    found = measure(
        [
            TaskScores(
                name,
                "target" if name.startswith("target") else "upstream",
                "accuracy",
                *(np.array(values) for values in (own["score"], after[name]["score"], own["answers"])),
            )
            for name, own in before.items()
        ]
    )
    return found.to_json() | {"signs": [sign.to_json() for sign in failure_signs(found, losses)]}


def table(record: dict[str, Any]) -> str:
    """What the page says of a record."""
    methods = record["methods"]
    tasks = [task["name"] for task in next(iter(methods.values()))["tasks"]]
    head = ["method", "trained weights", "E: gained", "F: forgotten", "O: average", *tasks]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    base = {task["name"]: task["base"]["value"] for task in next(iter(methods.values()))["tasks"]}
    lines.append("| before tuning | | | | | " + " | ".join(f"{base[name]:.1f}" for name in tasks) + " |")
    for name in (one for one in METHODS if one in methods):
        found = methods[name]
        overall = [
            f"{found[s]['value']:.1f} ({found[s]['low']:.1f} to {found[s]['high']:.1f})" for s in ("E", "F", "O")
        ]
        own = {task["name"]: task["tuned"]["value"] for task in found["tasks"]}
        cells = [f"`{name}`", f"{found['parameters']:,}", *overall, *(f"{own[task]:.1f}" for task in tasks)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train what was asked for, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=0, help="methods to train at most")
    options = parser.parse_args()
    stored = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    methods: dict[str, Any] = stored.get("methods", {})
    missing = [one for one in METHODS if one not in methods][: options.train]
    if missing:
        folder = Path(tempfile.gettempdir()) / "mars-forgetting"
        bench = load_bench(demo_data(folder), Settings(Recipe(max_tokens=512), STEPS, 0, 0))
        base = bench.base
        tasks = tasks_of(folder, base.processor)
        before = scores_of(base.model, tasks, base.pad_token_id)
    for name in missing:
        trained, losses = train(name, bench)
        after = scores_of(trained, tasks, base.pad_token_id)
        count = read_baseline(name).method.trainable_parameters(base.partition)
        methods[name] = described(before, after, losses) | {"parameters": count, "last_loss": losses[-1]}
        record = {
            "command": "python benchmarks/forgetting.py",
            "date": datetime.now(UTC).date().isoformat(),
            "versions": {"mars": __version__, "torch": torch.__version__, "Python": platform.python_version()},
            "settings": {"steps": STEPS, "seed": SEED, "rate": RATE, "upstream_samples": UPSTREAM},
            "methods": methods,
        }
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    if PAGE.is_file():
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), MARK, table(record)), encoding="utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
