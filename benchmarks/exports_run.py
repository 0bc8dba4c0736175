"""Run every export in its real tool: families x tools, each tool in a Python environment of its own.

    python benchmarks/exports_run.py install             # makes the environments (network; about 6 GB)
    python benchmarks/exports_run.py run [--only TOOL ...] [--families NAME ...]
    python benchmarks/exports_run.py table               # the record as the table in docs/using-the-adapter.md

Small random-weight models with the published templates and token ids (benchmarks/exports/checkpoints.py), eight rows
about pictures, on the CPU. A cell is run once and kept in results/exports_run.json; delete it there to run it again.
What is checked of each: the tool ends well and evaluates; the adapter that it saves has the pair's ranks in the right
modules, alpha / r of the recipe, A and B moved, and PEFT loads it; the tokens and labels that it trained on, read from
its Trainer, are those that MARS trains on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from doc_table import DOCS, markdown, with_table
from peft import PeftConfig
from PIL import Image
from safetensors.torch import load_file

from mars_core.data.encode import IGNORE, encode_sample
from mars_core.data.records import PathImage, Sample, Source, Turn
from mars_core.export.chat_facts import chat_facts
from mars_core.export.rows import RowWriter
from mars_core.export.start import save_start
from mars_core.export.tool import ToolRun
from mars_core.export.tools import TOOLS
from mars_core.models.loading import read_processor, skeleton
from mars_core.models.lora import layer_alphas, layer_ranks
from mars_core.ranks import RankPair
from mars_core.training.recipe import Recipe

HERE = Path(__file__).parent
RECORD = HERE / "results" / "exports_run.json"
PAGE, MARK = DOCS / "using-the-adapter.md", "exports that were run"
CACHE = Path(os.environ.get("MARS_EXPORTS_CACHE", Path.home() / ".cache" / "mars" / "exports-run"))
FAMILIES = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "internvl", "gemma3")
PACKAGES = {
    "trl": ["trl==1.16.0", "transformers==5.24.0", "peft==0.21.2"],
    "llama-factory": ["llamafactory==0.9.5"],
    "ms-swift": ["ms-swift==4.6.0", "qwen_vl_utils", "timm"],
    "axolotl": ["axolotl==0.19.0"],
}
TORCH, TORCHVISION = "torch==2.13.0+cpu", "torchvision==0.28.0"
PAIR = RankPair(2, 4)
RECIPE = Recipe(learning_rate=1e-2, batch_size=2, max_tokens=2048, warmup_ratio=0.0, dtype="float32")
ROWS = {"train.jsonl": 8, "validation.jsonl": 4}
LIMIT_SECONDS = 420


def main() -> None:
    """Install, run, or print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["install", "run", "table"])
    parser.add_argument("--only", nargs="*", choices=list(PACKAGES), default=list(PACKAGES))
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=list(FAMILIES))
    options = parser.parse_args()
    if options.what == "install":
        for tool in options.only:
            install(tool)
    elif options.what == "run":
        run_all(options.only, options.families)
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), MARK, table(read_record())), encoding="utf-8")


def install(tool: str) -> None:
    """A virtual environment by uv, its PyTorch the CPU build; torchvision without what it asks for."""
    folder = CACHE / "environments" / tool
    uv = shutil.which("uv") or "uv"
    if not folder.is_dir():
        subprocess.run([uv, "venv", "--quiet", "--python", "3.11", str(folder)], check=True)
    override = CACHE / "torch.txt"
    override.write_text(f"{TORCH}\n")
    pip = [uv, "pip", "install", "--quiet", "--python", str(python_of(tool))]
    links = os.environ.get("MARS_EXPORTS_LINKS", "https://download.pytorch.org/whl/cpu/torch")
    wanted = [TORCH, *PACKAGES[tool], "num2words"]
    subprocess.run([*pip, "--find-links", links, "--override", str(override), *wanted], check=True)
    subprocess.run([*pip, "--no-deps", TORCHVISION], check=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    shutil.copy(HERE / "exports" / "sitecustomize.py", site / "sitecustomize.py")


def python_of(tool: str) -> Path:
    """The Python of a tool's environment."""
    return CACHE / "environments" / tool / "bin" / "python"


def read_record() -> dict[str, Any]:
    """What was measured so far."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {"cells": {}}


def run_all(tools: list[str], families: list[str]) -> None:
    """Run what is not in the record yet, writing it after every cell."""
    for tool in tools:
        for family in families:
            record = read_record()
            if f"{tool}/{family}" in record["cells"]:
                continue
            cell = run_cell(tool, family)
            record["cells"][f"{tool}/{family}"] = cell
            record["versions"] = {"transformers": version("transformers"), "peft": version("peft")} | {
                name: packages[0] for name, packages in PACKAGES.items()
            }
            RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            print(tool, family, cell["shown"], flush=True)


def run_cell(tool: str, family: str) -> dict[str, Any]:
    """Export a family's small model to a tool, run it there, and look at what came of it."""
    model = checkpoint(family)
    place = CACHE / "runs" / tool / family
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        run, expected = export(tool, model, place)
    except ValueError as error:
        return {"holds": False, "shown": f"refused: {error}"}
    started = time.monotonic()
    code, log = call(tool, place)
    seconds = round(time.monotonic() - started)
    (place / "log.txt").write_text(log)
    if code != 0:
        last = [line for line in log.splitlines() if "Error" in line or "error" in line][-1:]
        said = (last or ["no message"])[0].strip()[:200].replace(str(CACHE), "...")
        return {"holds": False, "shown": f"failed: {said}", "seconds": seconds}
    cell = look_at_adapter(run) | look_at_batches(place, expected) | {"evaluates": "eval_loss" in log}
    parts = ("ranks", "scale", "moved", "evaluates")
    wrong = [name for name in parts if not cell.get(name)]
    if cell["trained_rows"] < ROWS["train.jsonl"]:
        wrong.append(f"trained on {cell['trained_rows']} of {ROWS['train.jsonl']} rows")
    same = "tokens and labels as MARS's" if cell["equal"] else cell["difference"]
    return cell | {"holds": not wrong, "shown": "; ".join([*wrong, same]), "seconds": seconds}


def checkpoint(family: str) -> Path:
    """The small model, made once, in TRL's environment, which has torchvision."""
    folder = CACHE / "checkpoints"
    if not (folder / family / "processor_config.json").is_file():
        command = [str(python_of("trl")), str(HERE / "exports" / "checkpoints.py"), str(folder), family]
        subprocess.run(command, check=True, capture_output=True)
    return folder / family


def samples(folder: Path) -> dict[str, list[Sample]]:
    """Questions about one picture each, of several sizes, and one conversation of two answers."""
    generator = np.random.default_rng(0)
    made: dict[str, list[Sample]] = {}
    for name, count in ROWS.items():
        made[name] = []
        for number in range(count):
            size = [(64, 64), (96, 48), (48, 96)][number % 3]
            path = folder / f"{Path(name).stem}-{number}.png"
            Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
            turns = [Turn("user", "<image>\nWhat is in the picture?"), Turn("assistant", f"Noise number {number}.")]
            if number == 1:
                turns += [Turn("user", "Is it grey?"), Turn("assistant", "No, it is not.")]
            image = PathImage(path.name, folder)
            made[name].append(Sample(path.stem, (image,), tuple(turns), "noise", Source(Path(name), number + 1)))
    return made


def export(tool: str, model: Path, place: Path) -> tuple[ToolRun, list[dict[str, list[int]]]]:
    """Write configuration, rows and adapter; returns the run and what MARS trains on."""
    pictures = place / "pictures"
    pictures.mkdir()
    processor, splits = read_processor(str(model)), samples(pictures)
    _, partition = skeleton(str(model))
    family = partition.family
    run = ToolRun(
        study="exports",
        model=str(model),
        model_type=json.loads((model / "config.json").read_text())["model_type"],
        trust_remote_code=False,
        four_bit=False,
        gradient_checkpointing=False,
        pair=PAIR,
        ranks=layer_ranks(partition, PAIR),
        alphas=layer_alphas(partition, PAIR, RECIPE.alpha),
        modules={"projector": family.projector, "me": (family.me,), "llm": (family.llm,)},
        recipe=RECIPE,
        steps=4,
        epochs=1.0,
        seed=0,
        micro_batch_size=2,
        rows=place,
        start=place / "start",
        output=place / "output",
        chat=chat_facts(processor),
    )
    rendered = TOOLS[tool].render(run)
    run.start.mkdir()
    save_start(partition, PAIR, 0, run.start, model_id=str(model), alpha=RECIPE.alpha)
    writer = RowWriter(processor, place)
    for name, part in splits.items():
        lines = [json.dumps(TOOLS[tool].row(writer, sample)) for sample in part]
        (place / name).write_text("\n".join(lines) + "\n")
    for name, text in rendered.files.items():
        (place / name).write_text(text)
    (place / f"config{TOOLS[tool].suffix}").write_text(rendered.text)
    encoded = [encode_sample(sample, processor) for sample in splits["train.jsonl"]]
    return run, [{"input_ids": one.input_ids.tolist(), "labels": one.labels.tolist()} for one in encoded]


def call(tool: str, place: Path) -> tuple[int, str]:
    """Run a tool on its configuration; returns its exit code and all that it wrote."""
    environment = os.environ | {
        "PATH": f"{python_of(tool).parent}:{os.environ['PATH']}",
        "MARS_DUMP": str(place / "batches.jsonl"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_DISABLED": "true",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "PYTHONPATH": "",
        "HF_DATASETS_CACHE": str(place / "datasets"),
    }
    file = str(place / f"config{TOOLS[tool].suffix}")
    binaries = python_of(tool).parent
    commands = {
        "trl": [str(binaries / "python"), file],
        "llama-factory": [str(binaries / "llamafactory-cli"), "train", file],
        "ms-swift": ["sh", file],
        "axolotl": [str(binaries / "axolotl"), "train", file, "--launcher", "python"],
    }
    try:
        done = subprocess.run(
            commands[tool], env=environment, cwd=place, capture_output=True, text=True, timeout=LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        return 1, f"{error.stdout}\nError: not done after {LIMIT_SECONDS} s"
    return done.returncode, done.stdout + done.stderr


def look_at_adapter(run: ToolRun) -> dict[str, Any]:
    """Ranks by module, alpha / r and movement of the newest adapter that the tool saved."""
    found = sorted(run.output.rglob("adapter_model.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        return {"ranks": False, "scale": False, "moved": False}
    trained, first = load_file(found[-1]), load_file(run.start / "adapter_model.safetensors")
    config = PeftConfig.from_pretrained(str(found[-1].parent))
    prefix, layers = "base_model.model.", {}
    for name, value in trained.items():
        if name.endswith("lora_A.weight"):
            layers[name.removeprefix(prefix).removesuffix(".lora_A.weight")] = value.shape[0]
    scales = {_of(config.alpha_pattern, name, config.lora_alpha) / rank for name, rank in layers.items()}
    halves = [name for name in first if "lora_A" in name]
    moved_a = all(name in trained and not torch.equal(trained[name].float(), first[name].float()) for name in halves)
    moved_b = [bool(value.abs().max() > 0) for name, value in trained.items() if "lora_B" in name]
    return {
        "ranks": layers == dict(run.ranks),
        "scale": scales == {run.alpha / run.largest},
        "moved": moved_a and all(moved_b),
        "layers": {str(rank): count for rank, count in Counter(layers.values()).items()},
    }


def _of(pattern: dict[str, float], name: str, usual: float) -> float:
    return next((value for key, value in pattern.items() if key.replace("\\", "") == name), usual)


def look_at_batches(place: Path, expected: list[dict[str, list[int]]]) -> dict[str, Any]:
    """How many rows were trained on, and whether tokens and labels are MARS's; the first difference where not."""
    rows = []
    file = place / "batches.jsonl"
    for line in file.read_text().splitlines() if file.is_file() else []:
        batch = json.loads(line)
        for number, ids in enumerate(batch["input_ids"]):
            mask = batch.get("attention_mask", [[1] * len(ids)] * len(batch["input_ids"]))[number]
            kept = [place_ for place_, on in enumerate(mask) if on]
            rows.append({"input_ids": [ids[at] for at in kept], "labels": [batch["labels"][number][at] for at in kept]})
    wanted = {json.dumps(row): row for row in expected}
    equal = len(rows) == len(expected) and {json.dumps(row) for row in rows} == set(wanted)
    found = {"trained_rows": len(rows), "equal": equal}
    return found if equal else found | {"difference": _difference(rows, expected)}


def _difference(rows: list[dict[str, list[int]]], expected: list[dict[str, list[int]]]) -> str:
    tokens = {tuple(row["input_ids"]) for row in rows} == {tuple(row["input_ids"]) for row in expected}
    counts = [sum(len(row["input_ids"]) for row in part) for part in (rows, expected)]
    labels = [sum(label != IGNORE for row in part for label in row["labels"]) for part in (rows, expected)]
    if tokens:
        return f"tokens as MARS's; {labels[0]} of them are trained on, {labels[1]} in MARS"
    return f"other tokens than MARS: {counts[0]} in all, {labels[0]} trained on; in MARS {counts[1]} and {labels[1]}"


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    cells = {family: [record["cells"].get(f"{tool}/{family}") for tool in PACKAGES] for family in FAMILIES}
    rows = [[f"`{family}`", *map(shown, found)] for family, found in cells.items()]
    return markdown(["model type", *PACKAGES], rows)


def shown(cell: dict[str, Any] | None) -> str:
    """A cell of the table."""
    if cell is None:
        return "not run"
    return f"{'runs' if cell['holds'] else 'does not run'}: {cell['shown']}".replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())
