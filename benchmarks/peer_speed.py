"""Core time per pair and optimizer step: packs of MARS beside TRL's SFTTrainer, on the same work, in turns in one run.

    python benchmarks/exports_run.py install --only trl    # TRL's own environment, once
    python benchmarks/peer_speed.py                        # writes benchmarks/results/peer_speed.json

Same work: the demo's backbone and data, fp32, batch 8, one thread, loss on answer tokens alone, Adam, clipping, an
evaluation of 64 samples every 8 steps. MARS trains its 16 pairs as a pack; TRL trains one of them, the largest but one,
by the script that `mars export --to trl` writes. Both read and encode every picture in every step. What is counted is
the processor time of a long run less that of a short one, so that imports, loading and compiling drop out, and so that
other programs on the machine count little; the ratio is of the two in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from doc_table import markdown
from exports_run import PACKAGES, python_of

from mars_core.data.collate import collate
from mars_core.data.encode import encode_sample
from mars_core.data.readers import read_samples
from mars_core.demo import build_demo_data, demo_backbone_path
from mars_core.export.chat_facts import chat_facts
from mars_core.export.rows import RowWriter
from mars_core.export.start import save_start
from mars_core.export.tool import ToolRun
from mars_core.export.tools import TOOLS
from mars_core.models.loading import load_base
from mars_core.models.lora import layer_alphas, layer_ranks
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.cost import WIDEST_ADAPTER_BATCH
from mars_core.packing.run import PackRun
from mars_core.packing.train import train_pack
from mars_core.ranks import RankPair
from mars_core.training.recipe import Recipe

RECORD = Path(__file__).parent / "results" / "peer_speed.json"
RANKS = (2, 4, 8, 16)
PAIRS = [RankPair(r_me, r_llm) for r_me in RANKS for r_llm in RANKS]
PAIR = RankPair(16, 8)
BATCH, STEPS, SCORED = 8, 8, 64
SHORT, LONG = 1, 3
"""Epochs of 8 steps, each with an evaluation."""
LIMIT = 1.2
"""Of the ratio's median: below it packs save less than chance may move, and the command ends with 1."""
RECIPE = Recipe(learning_rate=2e-3, batch_size=BATCH)


def main() -> None:
    """Measure, write the record, print it as a table; ends with 1 below the limit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pack", metavar="DATA", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pack:
        print(json.dumps(pack_seconds(Path(options.pack))))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.rounds)
    RECORD.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
    if result["times_less_core_time"]["median"] < LIMIT:
        sys.exit(1)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Both in turns, each in processes of its own."""
    data = folder / "data"
    build_demo_data(data, n_train=BATCH * STEPS, n_validation=SCORED, n_test=8)
    scripts = {epochs: export(folder / f"trl-{epochs}", data, epochs) for epochs in (SHORT, LONG)}
    found: dict[str, list[float]] = {"MARS": [], "TRL": []}
    for number in range(rounds):
        found["MARS"].append(mars_milliseconds(data))
        found["TRL"].append(trl_milliseconds(scripts))
        print(f"round {number + 1}:", {name: round(values[-1], 1) for name, values in found.items()}, flush=True)
    ratios = [trl / mars for trl, mars in zip(found["TRL"], found["MARS"], strict=True)]
    return {
        "machine": {"device": platform.processor() or platform.machine(), "threads": 1, "torch": torch.__version__},
        "versions": PACKAGES["trl"],
        "pairs_in_the_pack": len(PAIRS),
        "core_ms_per_pair_step": {name: [round(value, 1) for value in values] for name, values in found.items()},
        "times_less_core_time": {
            "median": round(statistics.median(ratios), 2),
            "rounds": [round(r, 2) for r in ratios],
        },
        "limit": LIMIT,
    }


def mars_milliseconds(data: Path) -> float:
    """Core time per pair and step in a pack, evaluations included."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--pack", str(data)], env=environment, check=True, capture_output=True, text=True
    )
    seconds = json.loads(done.stdout.splitlines()[-1])
    return per_step(seconds[str(LONG)] - seconds[str(SHORT)]) / len(PAIRS)


def per_step(seconds: float) -> float:
    """Milliseconds of a step from the seconds by which the long run takes more than the short one."""
    return 1000 * seconds / ((LONG - SHORT) * STEPS)


def pack_seconds(data: Path) -> dict[int, float]:
    """Processor seconds of the pack, short and long, in this process."""
    torch.set_num_threads(1)
    base = load_base(str(demo_backbone_path()), device=torch.device("cpu"), dtype=torch.float32)
    train, held_out = (read_samples(data / f"{name}.json", data / "images") for name in ("train", "validation"))

    def batch(samples: Any) -> dict[str, torch.Tensor]:
        return collate([encode_sample(sample, base.processor) for sample in samples], base.pad_token_id)

    def steps(done: int, epochs: int) -> Iterator[list[dict[str, torch.Tensor]]]:
        for number in range(done, epochs * STEPS):
            start = number % STEPS * BATCH
            yield [batch(train[start : start + BATCH])]

    def scored() -> Iterator[tuple[dict[str, torch.Tensor], list[str]]]:
        for start in range(0, SCORED, BATCH):
            yield batch(held_out[start : start + BATCH]), ["any"] * BATCH

    found = {}
    for epochs in (SHORT, LONG):
        started = time.process_time()
        train_pack(
            base.model,
            base.partition,
            [PackRun(pair, 0) for pair in PAIRS],
            train_steps=lambda done, epochs=epochs: steps(done, epochs),
            validation=scored,
            recipe=RECIPE,
            horizon=LONG * STEPS,
            checkpoint_steps=[STEPS * (epoch + 1) for epoch in range(epochs)],
            adapter_batches=AdapterBatches(WIDEST_ADAPTER_BATCH["cpu"], 1),
        )
        found[epochs] = time.process_time() - started
    return found


def export(place: Path, data: Path, epochs: int) -> Path:
    """The script that `mars export --to trl` writes, its rows and the untrained adapter."""
    place.mkdir()
    base = load_base(str(demo_backbone_path()), device=torch.device("cpu"), dtype=torch.float32)
    family = base.partition.family
    run = ToolRun(
        study="peer-speed",
        model=str(demo_backbone_path()),
        model_type="llava_onevision",
        trust_remote_code=False,
        four_bit=False,
        gradient_checkpointing=False,
        pair=PAIR,
        ranks=layer_ranks(base.partition, PAIR),
        alphas=layer_alphas(base.partition, PAIR, RECIPE.alpha),
        modules={"projector": family.projector, "me": (family.me,), "llm": (family.llm,)},
        recipe=RECIPE,
        steps=epochs * STEPS,
        epochs=float(epochs),
        seed=0,
        micro_batch_size=BATCH,
        rows=place,
        start=place / "start",
        output=place / "output",
        chat=chat_facts(base.processor),
    )
    run.start.mkdir()
    save_start(base.partition, PAIR, 0, run.start, model_id=run.model, alpha=RECIPE.alpha)
    writer = RowWriter(base.processor, place)
    for name in ("train", "validation"):
        samples = read_samples(data / f"{name}.json", data / "images")
        lines = [json.dumps(TOOLS["trl"].row(writer, sample)) for sample in samples]
        (place / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    script = place / "train.py"
    script.write_text(TOOLS["trl"].render(run).text)
    return script


def trl_milliseconds(scripts: dict[int, Path]) -> float:
    """Core time per step of one pair in TRL, evaluations included."""
    seconds = {epochs: trl_seconds(script) for epochs, script in scripts.items()}
    return per_step(seconds[LONG] - seconds[SHORT])


def trl_seconds(script: Path) -> float:
    """Processor seconds of a whole run in TRL's environment."""
    shutil.rmtree(script.parent / "output", ignore_errors=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    environment["HF_DATASETS_CACHE"] = str(script.parent / "datasets")
    process = subprocess.Popen(
        [str(python_of("trl")), str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"TRL ended with {os.waitstatus_to_exitcode(status)}:\n{said[-3000:]}")
    return usage.ru_utime + usage.ru_stime


def table(result: dict[str, Any]) -> str:
    """The record in a line."""
    ms, ratio = result["core_ms_per_pair_step"], result["times_less_core_time"]
    median = {name: f"{statistics.median(values):.0f}" for name, values in ms.items()}
    spread = f"{ratio['median']} ({min(ratio['rounds'])} to {max(ratio['rounds'])}, {len(ratio['rounds'])} rounds)"
    header = ("core ms per pair and step", result["versions"][0], "times less in packs", "at least")
    rows = [
        (median["MARS"] + f" (MARS, {result['pairs_in_the_pack']} pairs)", median["TRL"], spread, str(result["limit"]))
    ]
    return markdown(header, rows)


if __name__ == "__main__":
    main()
