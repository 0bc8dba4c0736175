"""Pair-steps per second of the packed engine, beside the same runs one after another with plain PEFT.

On a CPU: the demo's backbone and data, 16 pairs, batch 8. In turns, in one call of this script:

    sequential    plain PEFT, one run after another, one process with all cores
    side by side  plain PEFT, one one-thread process per core
    packed        all runs as one pack, one thread per adapter batch

Plain PEFT gets the same batches, loss at answer tokens alone (no dense logits), Adam, clipping and schedule. Optimizer
steps are timed; loading, wrapping and the first `WARM_UP` steps of every run are not. Beside the ratios: peak memory,
where a packed step's time goes, and the distance to the arithmetic limit of the machine (products at the speed of one
large product).

    python benchmarks/packed_speed.py                      # writes benchmarks/results/packed_speed.json
    python benchmarks/packed_speed.py --shape 0.5b --device cuda   # a LLaVA-OneVision 0.5B shape, random weights, bf16
    python benchmarks/packed_speed.py --shape small        # the same code as for 0.5b, small enough for a CPU
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mars_core.data.collate import collate
from mars_core.data.encode import encode_sample
from mars_core.data.readers import read_samples
from mars_core.demo import build_demo_data, demo_backbone_path
from mars_core.evaluation.answer_loss import token_losses
from mars_core.models.families import family_of
from mars_core.models.loading import load_base
from mars_core.models.lora import add_adapters, remove_adapters, trainable_parameters
from mars_core.models.partition import Partition, partition_of
from mars_core.packing.adapter_batch import Pass, make_adapter_batch
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.adapters import by_group, initial_weights, layout_of
from mars_core.packing.batch import pack_batch
from mars_core.packing.cost import ACTIVATION_MARGIN, BYTES_PER_TRAINABLE, WIDEST_ADAPTER_BATCH, activation_bytes
from mars_core.packing.examine import examine
from mars_core.packing.flat_buffers import zero_vectors
from mars_core.packing.forward import adapter_batch_losses
from mars_core.packing.patching import patched
from mars_core.packing.run import PackRun
from mars_core.packing.train import train_pack
from mars_core.ranks import RankPair
from mars_core.training.optimizer import make_schedule
from mars_core.training.recipe import Recipe

RESULTS = Path(__file__).parent / "results"
CORES = os.cpu_count() or 1
WARM_UP = 3
Batch = dict[str, torch.Tensor]

# LLaVA-OneVision 0.5B: SigLIP-so400m and Qwen2-0.5B; an image of 266 pixels is two tiles of 19 x 19 patches, about 740
# tokens, so that sequences have about 800. `small` is the same model, a few percent of its size.
SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": {
        "vision": (1152, 4304, 27, 16, 266, 14),
        "text": (896, 4864, 24, 14, 2, 151_936),
        "question": 60,
        "ranks": (8, 16, 32, 64),
    },
    "small": {"vision": (96, 192, 3, 4, 84, 14), "text": (128, 384, 4, 4, 2, 4096), "question": 24, "ranks": (4, 16)},
}


@dataclass(frozen=True)
class Bench:
    """Model, batches of every optimizer step, pairs, recipe."""

    model: nn.Module
    partition: Partition
    batches: Sequence[Batch]
    pairs: Sequence[RankPair]
    recipe: Recipe


def demo_bench(data: Path, steps: int) -> Bench:
    """The demo's calibration: 16 pairs, batches of 8 in the order of the file."""
    base = load_base(str(demo_backbone_path()), device=torch.device("cpu"), dtype=torch.float32)
    samples = read_samples(data / "train.json", data / "images")[: 8 * steps]
    encoded = [encode_sample(sample, base.processor) for sample in samples]
    batches = [collate(encoded[start : start + 8], base.pad_token_id) for start in range(0, len(encoded), 8)]
    return Bench(base.model, base.partition, batches, _grid((2, 4, 8, 16)), Recipe(learning_rate=2e-3))


def shape_bench(name: str, device: str, steps: int) -> Bench:
    """A LLaVA-OneVision of random weights, and batches of 8 random pictures with a question each."""
    shape = SHAPES[name]
    dtype = "bfloat16" if device == "cuda" else "float32"
    model = _random_model(shape).to(device=device, dtype=getattr(torch, dtype)).requires_grad_(False).eval()
    partition = partition_of(model, family_of("llava_onevision"))
    batches = [_random_batch(shape, model.dtype, device, seed) for seed in range(steps)]
    return Bench(model, partition, batches, _grid(shape["ranks"]), Recipe(dtype=dtype))


def _grid(ranks: Sequence[int]) -> list[RankPair]:
    return [RankPair(r_me, r_llm) for r_me in ranks for r_llm in ranks]


def _random_model(shape: dict[str, Any]) -> Any:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    width, inner, layers, heads, side, patch = shape["vision"]
    vision = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=side,
        patch_size=patch,
        vision_use_head=False,
    )
    width, inner, layers, heads, kv_heads, vocabulary = shape["text"]
    text = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=vocabulary - 1,
        video_token_index=vocabulary - 2,
        image_grid_pinpoints=[[side, side]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlavaOnevisionForConditionalGeneration(config)


def _random_batch(shape: dict[str, Any], dtype: torch.dtype, device: str, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    side, patch = shape["vision"][4:]
    vocabulary, grid = shape["text"][5], side // patch
    image_tokens = 2 * grid * grid + grid  # two tiles, and a line break after each row of the second
    rows = []
    for _ in range(8):  # answers of a quarter to the whole of a question's length
        answer = int(torch.randint(shape["question"] // 4, shape["question"], (), generator=generator))
        text = torch.randint(3, vocabulary - 2, (shape["question"] + answer,), generator=generator)
        ids = torch.cat([torch.full((image_tokens,), vocabulary - 1), text])
        labels = torch.full_like(ids, -100)
        labels[-answer:] = ids[-answer:]
        rows.append((ids, labels))
    pad = nn.utils.rnn.pad_sequence
    ids = pad([row for row, _ in rows], batch_first=True)
    batch = {
        "input_ids": ids,
        "attention_mask": pad([torch.ones_like(row) for row, _ in rows], batch_first=True),
        "labels": pad([row for _, row in rows], batch_first=True, padding_value=-100),
        "pixel_values": torch.randn(8, 2, 3, side, side, generator=generator).to(dtype),
        "image_sizes": torch.full((8, 2), side),
        "batch_num_images": torch.ones(8, dtype=torch.long),
    }
    return {name: value.to(device) for name, value in batch.items()}


def time_plain(bench: Bench, pairs: Iterable[RankPair]) -> list[float]:
    """Seconds of every optimizer step of the runs, one run after another with PEFT."""
    seconds = []
    device = next(bench.model.parameters()).device.type
    half = bench.recipe.dtype != "float32"
    for pair in pairs:
        model = add_adapters(bench.model, bench.partition, pair, seed=0).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=bench.recipe.learning_rate)
        schedule = make_schedule(optimizer, bench.recipe, len(bench.batches))
        for number, batch in enumerate(bench.batches):
            started = time.perf_counter()
            with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
                loss = token_losses(model, batch).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, bench.recipe.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()
            if number >= WARM_UP:
                seconds.append(time.perf_counter() - started)
        remove_adapters(model).eval()
    return seconds


def time_packed(bench: Bench, adapter_batches: AdapterBatches) -> list[float]:
    """Seconds of every optimizer step of the whole pack."""
    stamps: list[float] = []

    def steps(done: int) -> Iterable[list[Batch]]:
        for batch in bench.batches[done:]:
            stamps.append(time.perf_counter())
            yield [batch]

    last = len(bench.batches)
    train_pack(
        bench.model,
        bench.partition,
        [PackRun(pair, 0) for pair in bench.pairs],
        train_steps=steps,
        validation=lambda: [(bench.batches[0], ["any"] * 8)],
        recipe=bench.recipe,
        horizon=last,
        checkpoint_steps=[last],
        adapter_batches=adapter_batches,
        on_step=lambda step: stamps.append(time.perf_counter()) if step < last else None,
    )
    # The last step is followed by the evaluation, which is not timed here.
    return [end - start for start, end in zip(stamps[0:-1:2], stamps[1::2], strict=True)][WARM_UP:]


class Worker:
    """A process that holds a bench and times a chunk when told to; so that all ways can be timed in turns."""

    def __init__(self, arguments: Sequence[str], threads: int) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, *arguments]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._read()  # ready

    def start(self) -> None:
        """Begin a chunk."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Wait for the chunk's result."""
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                value: dict[str, Any] = json.loads(line)
                return value
        raise RuntimeError(f"a worker of the benchmark ended early: {' '.join(self._process.args)}")  # type: ignore[arg-type]


def work(options: argparse.Namespace) -> None:
    """The life of a worker."""
    bench = _bench(options)
    pairs = bench.pairs[options.part :: options.parts]
    print("{}", flush=True)
    for _ in sys.stdin:
        if options.work == "packed":
            seconds = [second / len(bench.pairs) for second in time_packed(bench, _adapter_batches(options))]
        else:
            seconds = time_plain(bench, pairs)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
        print(json.dumps({"mean": statistics.mean(seconds), "peak_bytes": peak}), flush=True)


def _bench(options: argparse.Namespace) -> Bench:
    if options.shape == "demo":
        return demo_bench(Path(options.data), options.steps)
    return shape_bench(options.shape, options.device, options.steps)


def _adapter_batches(options: argparse.Namespace) -> AdapterBatches:
    return AdapterBatches(
        options.width or WIDEST_ADAPTER_BATCH[options.device], 1 if options.device == "cuda" else CORES
    )


def _arguments(options: argparse.Namespace) -> list[str]:
    names = ("shape", "device", "steps", "data", "width")
    return [text for name in names for text in (f"--{name}", str(getattr(options, name)))]


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Time the three ways in turns; medians over rounds of the mean seconds per pair-step."""
    shared = _arguments(options)
    ways = {"sequential": [Worker([*shared, "--work", "plain"], CORES)]}
    if options.device == "cpu":
        ways["side by side"] = [
            Worker([*shared, "--work", "plain", "--part", str(part), "--parts", str(CORES)], 1) for part in range(CORES)
        ]
    ways["packed"] = [Worker([*shared, "--work", "packed"], 1 if options.device == "cpu" else CORES)]
    times: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, int] = {}
    for turn in range(options.rounds + 1):
        for name, workers in ways.items():
            for worker in workers:
                worker.start()
            results = [worker.result() for worker in workers]
            peaks[name] = sum(result["peak_bytes"] for result in results)
            if turn:  # the first round warms up
                times[name].append(statistics.mean(result["mean"] for result in results) / len(workers))
    for workers in ways.values():
        for worker in workers:
            worker.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        name: [round(a / b, 3) for a, b in zip(values, times["packed"], strict=True)] for name, values in times.items()
    }
    return {
        "ms_per_pair_step": {name: round(1000 * value, 2) for name, value in medians.items()},
        "times_faster": {
            name: {"median": statistics.median(ratios[name]), "rounds": ratios[name]}
            for name in ways
            if name != "packed"
        },
        "peak_megabytes": {name: round(peak / 1e6) for name, peak in peaks.items()},
    }


def memory_of_one(options: argparse.Namespace) -> int:
    """Peak memory of a process that trains a single run with plain PEFT."""
    shared = _arguments(options)
    worker = Worker([*shared, "--work", "plain", "--part", "0", "--parts", "16"], 1)
    worker.start()
    peak = int(worker.result()["peak_bytes"])
    worker.close()
    return peak


PARTS = {
    "frozen products (merged with the adapters)": ("aten::bmm", "aten::baddbmm", "aten::mkldnn_convolution"),
    "low-rank products": ("aten::mm", "aten::addmm", "aten::addmm_", "_Merged", "_LowRank"),
    "attention": ("aten::_scaled_dot_product",),
    "elementwise": (
        "aten::mul", "aten::add", "aten::silu", "aten::gelu", "aten::pow", "aten::sum", "aten::mean", "aten::rsqrt",
        "aten::div", "aten::neg", "aten::native_layer_norm", "aten::_log_softmax", "aten::nll_loss", "aten::sub",
        "aten::linalg_vector_norm", "Optimizer",
    ),
    "copies and gathers": (
        "aten::copy_", "aten::cat", "aten::index", "aten::fill_", "aten::masked", "aten::gather", "aten::clone",
        "aten::where", "aten::repeat",
    ),
}  # fmt: skip


def _middle_adapter_batch(pairs: Sequence[RankPair], width: int) -> list[RankPair]:
    """Neighbours in the order of adapter batches, from the middle: of medium ranks."""
    ordered = sorted(pairs, key=lambda pair: (pair.r_llm, pair.r_me))
    start = (len(ordered) - width) // 2 // width * width
    return ordered[start : start + width]


def break_down(bench: Bench, width: int) -> dict[str, Any]:
    """Where the time of an adapter batch's pass goes, in one thread, and what its arithmetic alone would take."""
    torch.set_num_threads(1)
    structure = examine(bench.model, bench.partition, bench.batches[0])
    pairs = _middle_adapter_batch(bench.pairs, width)
    layouts = [layout_of(bench.partition, pair) for pair in pairs]
    initial = [initial_weights(bench.model, bench.partition, pair, 0) for pair in pairs]
    weights, gradients = (zero_vectors(layouts, initial[0].device, initial[0].dtype) for _ in range(2))
    for layout, flat, vectors in zip(layouts, initial, weights, strict=True):
        for group, value in by_group(flat, layout).items():
            vectors[group].copy_(value)
    adapter_batch = make_adapter_batch(layouts, weights, gradients)

    def step(batch: Batch) -> None:
        adapter_batch_losses(
            bench.model, Pass(adapter_batch, pack_batch(batch, unpadded=structure.unpadded))
        ).sum().backward()

    with patched(bench.model, bench.partition, structure):
        step(bench.batches[0])
        started = time.perf_counter()
        for batch in bench.batches:
            step(batch)
        seconds = time.perf_counter() - started
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for batch in bench.batches:
                step(batch)
        with FlopCounterMode(display=False) as counter:
            for batch in bench.batches:
                step(batch)
    count = len(bench.batches) * width
    totals = dict.fromkeys(PARTS, 0.0)
    rest = 0.0
    for row in profiled.key_averages():
        own = row.self_cpu_time_total / 1000 / count
        part = next((name for name, starts in PARTS.items() if row.key.startswith(starts)), None)
        if part is None:
            rest += own
        else:
            totals[part] += own
    speed = products_per_second()
    return {
        "one_thread_ms_per_pair_step": round(1000 * seconds / count, 2),
        "profiled_parts_ms": {name: round(value, 2) for name, value in totals.items()} | {"the rest": round(rest, 2)},
        "structure": {
            "unpadded": structure.unpadded,
            "answers_only": len(structure.answers_only),
            "shared": len(structure.shared),
            "distinct_pictures": structure.distinct_pictures,
        },
        "gflop_per_pair_step": round(counter.get_total_flops() / count / 1e9, 3),
        "gflops_of_one_thread": round(speed / 1e9, 1),
        "arithmetic_limit_one_thread_ms": round(1000 * counter.get_total_flops() / count / speed, 2),
    }


def products_per_second() -> float:
    """Floating point operations per second of one large product in one thread, the best of several."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * 1024**3 / min(seconds)


def main() -> None:
    """Run the benchmark and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["demo", *SHAPES], default="demo")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16, help="optimizer steps per run and round")
    parser.add_argument("--width", type=int, default=0, help="members of an adapter batch (default: the planner's)")
    parser.add_argument("--data", default="", help=argparse.SUPPRESS)
    parser.add_argument("--work", choices=["plain", "packed"], help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--parts", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.shape == "demo" and not options.data:
            options.data = str(
                build_demo_data(Path(folder), n_train=8 * options.steps, n_validation=8, n_test=8).folder
            )
        result = measure(options)
    path = RESULTS / f"packed_speed{'' if options.shape == 'demo' else '_' + options.shape}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one shape on one device."""
    bench = _bench(options)
    compared = compare(options)
    adapter_batches = _adapter_batches(options)
    largest = max(bench.pairs, key=lambda pair: trainable_parameters(bench.partition, pair))
    each = activation_bytes(bench.model, bench.partition, bench.batches[0], largest, bench.recipe)
    adapters = sum(trainable_parameters(bench.partition, pair) for pair in bench.pairs) * BYTES_PER_TRAINABLE
    under_way = min(adapter_batches.width * adapter_batches.at_once, len(bench.pairs))
    one = memory_of_one(options)
    stated = int(under_way * each * ACTIVATION_MARGIN)
    result = {
        "machine": {
            "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "cpu",
            "cores": CORES,
            "torch": torch.__version__,
        },
        "shape": options.shape,
        "pairs": len(bench.pairs),
        "batch": 8,
        "tokens": round(statistics.mean(int(batch["attention_mask"].sum()) / 8 for batch in bench.batches)),
        "padded_tokens": round(statistics.mean(batch["input_ids"].shape[1] for batch in bench.batches)),
        "lanes": {"width": adapter_batches.width, "at_once": adapter_batches.at_once},
        **compared,
        "memory_megabytes": {
            "one_plain_run": round(one / 1e6),
            "packed": compared["peak_megabytes"]["packed"],
            "adapters_of_all_runs": round(adapters / 1e6, 1),
            "stated_activations": round(stated / 1e6, 1),
            "limit": round((1.5 * one + adapters + stated) / 1e6),
        },
    }
    if options.device == "cpu":
        result["where_the_time_goes"] = break_down(bench, adapter_batches.width)
    return result


if __name__ == "__main__":
    main()
