"""Do predictions from the demo's calibration come true? Its calibration runs, and final runs of many pairs.

Calibration and final runs are made by the product's own flows on the demo study: `mars calibrate` with one seed at a
time, and `mars finetune --ranks R_ME R_LLM`. Every final adapter is also scored on the test split. What is kept:

    calibration.parquet        checkpoints of the demo's calibration (16 pairs, 2,048 samples each), one seed after
                               the other; a seed decides the adapters' initial weights and the order of the samples
    calibration_full.parquet   with --full-seeds, the same with `calibration.samples` raised to the whole training
                               set: what calibration itself says of the size that its laws extrapolate to
    finals.json                final runs: losses at every evaluation, test loss, steps, samples, parameters, seconds
    finals_0.5_epochs.json     the same with as many samples as the calibration has: do both ways of training agree?

    python benchmarks/demo_final_runs.py --seeds 0 1 2 --pairs 8,16 4,4 2,2 16,16

What the result folder holds already is not repeated, and a stopped run goes on from the study folders in `--work`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from flows.calibrate import calibrate_flow
from flows.cli.temporary_server import start_temporary_server
from flows.stages import finetune_flow
from mars_core import __version__
from mars_core.evaluation.scores import Evaluation, evaluate
from mars_core.ranks import RankPair
from mars_core.training.finetune import scores_at
from tasks.calibration.stored import stored_metrics
from tasks.final.arm import Arm
from tasks.final.pair import final_folder
from tasks.final.record import read_final
from tasks.inputs.base_model import model_fingerprint
from tasks.inputs.data import load_data, scored_batches
from tasks.inputs.opened import Inputs
from tasks.settings.baselines import of_pair
from tasks.settings.demo import DemoSizes, prepare_demo
from tasks.settings.study import StudyConfig
from tasks.storage.folder import Revision
from tasks.storage.location import working_folder
from tasks.study.lock import at_work_on
from tasks.study.revision import newest_revision

RESULTS = Path(__file__).parent / "results" / "demo_final_runs"
SIZES, CALIBRATED = DemoSizes(train=4096, validation=256, test=512), 2048
RANKS = (2, 4, 8, 16)
RATE, SMALLEST = 2e-3, 64
RECIPE_FIELDS = ["learning_rate", "batch_size", "warmup_ratio", "max_grad_norm", "lora_dropout", "max_tokens", "dtype"]
COLUMNS = (
    *("r_me", "r_llm", "seed", "data_seed", "run_id", "step", "samples_seen", "unique_samples"),
    *("val_loss", "val_accuracy", "train_loss", "lr", "grad_norm_me", "grad_norm_llm", "objective", "wall_seconds"),
)
"""What is kept of the calibration's metrics: everything that a choice reads."""

FIRST = ((8, 16), (4, 4), (2, 2), (16, 16), (2, 16), (16, 2), (8, 8), (4, 16))
PAIRS = (*FIRST, *(pair for pair in product(RANKS, RANKS) if pair not in FIRST))


def recorded_demo(work: Path) -> StudyConfig:
    """The demo as it was when the records began: one learning rate, 16 pairs, larger splits."""
    demo = prepare_demo(work, SIZES)
    calibration = {"ranks": RANKS, "learning_rates": None, "samples": CALIBRATED, "smallest_size": SMALLEST}
    return study_of(demo, work, "study", recipe={"learning_rate": RATE}, calibration=calibration)


def study_of(demo: StudyConfig, work: Path, name: str, **changes: dict[str, Any]) -> StudyConfig:
    """The demo's study in a folder of its own, with some fields of its sections changed."""
    sections = {key: getattr(demo, key).model_copy(update=fields) for key, fields in changes.items()}
    return demo.model_copy(update={"study": str((work / name).resolve()), **sections})


def calibrated(config: StudyConfig) -> pd.DataFrame:
    """Checkpoint metrics of a study after `mars calibrate`."""
    calibrate_flow(config)
    return stored_metrics(newest_revision(working_folder(config.study)))


def add_calibration(demo: StudyConfig, work: Path, out: Path, seed: int, samples: int) -> None:
    """Calibrate with one seed, unless the result file holds it, and add its rows to the file."""
    known = pd.read_parquet(out) if out.is_file() else None
    if known is not None and seed in set(known["seed"]):
        return
    config = study_of(
        demo, work, f"calibration-{samples}-seed{seed}", calibration={"seeds": (seed,), "samples": samples}
    )
    rows = calibrated(config)[list(COLUMNS)]
    joined = rows if known is None else pd.concat([known, rows], ignore_index=True)
    temporary = out.with_suffix(".part")
    joined.to_parquet(temporary, index=False, compression="zstd")
    temporary.replace(out)


def add_final(demo: StudyConfig, work: Path, out: Path, pair: RankPair, seed: int, epochs: float) -> None:
    """Train one pair as the product does, unless the result file holds it, and add its record to the file."""
    config = study_of(demo, work, f"final-{epochs:g}-epochs-seed{seed}", final={"seed": seed, "epochs": epochs})
    result = read_result(out, config)
    identity = {"r_me": pair.r_me, "r_llm": pair.r_llm, "seed": seed, "epochs": epochs}
    if any(identity.items() <= run.items() for run in result["runs"]):
        return
    with at_work_on(working_folder(config.study)):
        finetune_flow(config, *pair, role="asked for")
    revision = newest_revision(working_folder(config.study))
    result["runs"].append(identity | final_record(config, revision, pair))
    result["command"] = command_of(result["runs"])
    write_json(out, result)


def final_record(config: StudyConfig, revision: Revision, pair: RankPair) -> dict[str, Any]:
    """What is kept of a finished final run."""
    run = read_final(revision, Arm(pair))
    last, samples = scores_at(run.history, run.steps), run.steps * config.recipe.batch_size
    test = test_scores(config, revision, pair)
    return {
        "steps": run.steps,
        "samples": samples,
        "unique_samples": min(samples, len(Inputs(config).training_set)),
        "trainable_parameters": run.trainable_parameters,
        "val_loss": last["eval_loss"],
        "val_accuracy": last["eval_accuracy"],
        "best_val_loss": run.best_val_loss,
        "best_step": run.best_step,
        "val_losses": {str(entry["step"]): entry["eval_loss"] for entry in run.history if "eval_loss" in entry},
        "train_losses": {str(entry["step"]): entry["loss"] for entry in run.history if "loss" in entry},
        "test_loss": test.overall.loss,
        "test_accuracy": test.overall.accuracy,
        "seconds": round(run.seconds, 1),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def test_scores(config: StudyConfig, revision: Revision, pair: RankPair) -> Evaluation:
    """Scores of a final adapter, loaded again from its folder, on the test split."""
    base, method = Inputs(config).final_base_model, of_pair(pair).method
    loaded = method.load(base.model, final_folder(revision, Arm(pair)) / "adapter")
    try:
        return evaluate(loaded, scored_batches(Inputs(config).test_set(), base, config.evaluation_batch_size)())
    finally:
        method.unwrap(loaded)


def read_result(out: Path, config: StudyConfig) -> dict[str, Any]:
    """The final runs kept so far, or a result without any.

    Raises:
        ValueError: they were made with another model, data or recipe.
    """
    found = settings_of(config)
    result: dict[str, Any] = {
        "command": "",
        "versions": versions(),
        "settings": found,
        "runs": [],
    }
    if out.is_file():
        stored: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        if stored["settings"] != found:
            raise ValueError(f"{out} was made with other settings: {stored['settings']}; move it away")
        result["runs"] = stored["runs"]
    return result


def command_of(runs: list[dict[str, Any]]) -> str:
    """The command that makes the final runs of a result file."""
    last = runs[-1]
    pairs = " ".join(f"{run['r_me']},{run['r_llm']}" for run in runs)
    return (
        f"python benchmarks/demo_final_runs.py --threads {last['threads']} --epochs {last['epochs']:g} --pairs {pairs}"
    )


def settings_of(config: StudyConfig) -> dict[str, Any]:
    """What all final runs of a result file share."""
    data = load_data(config.data)
    return {
        "recipe": config.recipe.model_dump(mode="json", include=set(RECIPE_FIELDS)),
        "calibration": config.calibration.model_dump(mode="json", include={"ranks", "samples", "smallest_size"}),
        "samples": {name: len(part) for name, part in data.parts.items()},
        "evaluation_batch_size": config.evaluation_batch_size,
        "model_fingerprint": model_fingerprint(config),
        "data_hash": data.data_hash,
    }


def versions() -> dict[str, str]:
    """What the runs were made with."""
    packages = {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    return {"mars": __version__, "python": platform.python_version(), **packages, "processor": platform.machine()}


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def a_pair(text: str) -> RankPair:
    """`8,16` as a pair."""
    r_me, r_llm = map(int, text.split(","))
    return RankPair(r_me, r_llm)


def main() -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="seeds of the calibration")
    parser.add_argument("--full-seeds", type=int, nargs="*", default=[], help="seeds to calibrate at full size")
    parser.add_argument(
        "--pairs", type=a_pair, nargs="*", default=[RankPair(*pair) for pair in PAIRS], help="pairs of the final runs"
    )
    parser.add_argument("--final-seed", type=int, default=0, help="seed of the final runs")
    parser.add_argument("--epochs", type=float, default=1.0, help="of the final runs")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: as the product)")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "mars-demo-final-runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    demo = recorded_demo(options.work)
    start_temporary_server()
    for seed in options.seeds:
        add_calibration(demo, options.work, options.out / "calibration.parquet", seed, CALIBRATED)
    name = "finals.json" if options.epochs == 1 else f"finals_{options.epochs:g}_epochs.json"
    for pair in options.pairs:
        add_final(demo, options.work, options.out / name, pair, options.final_seed, options.epochs)
    for seed in options.full_seeds:
        whole = len(Inputs(demo).training_set)
        add_calibration(demo, options.work, options.out / "calibration_full.parquet", seed, whole)


if __name__ == "__main__":
    main()
