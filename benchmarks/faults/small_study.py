"""The study that faults are tried on: a model of random weights, 2 x 2 rank pairs, eight steps, a second or two a run.

It goes through the same stages as any other, by the same functions. Prefect's engine is left out: it would start a
server, and what a study resumes from is its folder and MLflow, not Prefect.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.store.db.utils import _initialize_tables
from prefect import Flow, Task
from safetensors.torch import load_file
from sqlalchemy import create_engine
from transformers import AutoConfig, LlavaOnevisionForConditionalGeneration

from flows import stages
from flows.study import study_flow
from mars_core.data import dataset
from mars_core.data.encode import Encoded
from mars_core.data.records import Sample
from mars_core.demo import build_demo_data, demo_backbone_path
from mars_core.models.loading import Base
from mars_core.models.processor import load_processor
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.cost import Cost, Scoring, measure_cost
from mars_core.report import render
from tasks.calibration import packs
from tasks.inputs import base_model
from tasks.inputs.opened import open_inputs
from tasks.settings.calibration import CalibrationConfig, FitConfig
from tasks.settings.data import DataConfig
from tasks.settings.final import EvaluationConfig, FinalConfig
from tasks.settings.recipe import RecipeConfig
from tasks.settings.study import StudyConfig
from tasks.storage.folder import Revision
from tasks.tracking.runs import SUPERSEDED_TAG, tracking_uri

KEYS = ["r_me", "r_llm", "seed", "step"]
MEASURED = [*KEYS, "train_loss", "val_loss", "val_accuracy", "lr", "grad_norm_me", "grad_norm_llm", "samples_seen"]


def build_materials(folder: Path) -> None:
    """Data, a model of random weights, and an MLflow store with empty tables: what every study starts from."""
    build_demo_data(folder / "data", n_train=40, n_validation=8, n_test=8)
    backbone = str(demo_backbone_path())
    config = AutoConfig.from_pretrained(backbone)
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers = 1
    config.text_config.layer_types = config.text_config.layer_types[:1]
    torch.manual_seed(0)
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder / "model")
    load_processor(backbone).save_pretrained(folder / "model")
    _initialize_tables(create_engine(f"sqlite:///{folder / 'mlflow.db'}"))


def study_config(materials: Path, folder: Path) -> StudyConfig:
    """The study in a folder of its own."""
    data = materials / "data"
    return StudyConfig(
        study=str(folder),
        model=str(materials / "model"),
        data=DataConfig(
            train=str(data / "train.json"),
            validation=str(data / "validation.json"),
            test=str(data / "test.json"),
            images=str(data / "images"),
        ),
        recipe=RecipeConfig(learning_rate=1e-3, batch_size=4, max_tokens=512),
        calibration=CalibrationConfig(ranks=(2, 4), samples=32, smallest_size=4, parallel=1, pack_runs=2),
        fit=FitConfig(bootstrap=20),
        final=FinalConfig(epochs=1, compare_uniform=False),
        evaluation=EvaluationConfig(answer_tokens=2),
        device="cpu",
    )


def new_study(materials: Path, folder: Path) -> StudyConfig:
    """A study that has not run; MLflow's empty tables are there, since making them takes seconds."""
    folder.mkdir(parents=True)
    shutil.copyfile(materials / "mlflow.db", folder / "mlflow.db")
    return study_config(materials, folder)


def leave_prefect_out() -> None:
    """Flows and tasks are the functions that they are made of, and reports have one figure."""
    for kind in (Flow, Task):
        kind.__call__ = lambda self, *args, **kwargs: self.fn(*args, **kwargs)  # type: ignore[method-assign]
    stages.publish_artifacts = lambda *_: None
    stages.show_report = lambda *_: None
    render.PLOTS = tuple(
        plot if plot.name == "heatmap" else replace(plot, draw=lambda *_: None) for plot in render.PLOTS
    )


def keep_in_memory(config: StudyConfig, cost: Any) -> None:
    """Load the base model and encode the samples now, and take a noted cost for every pack.

    Processes that are forked later have all of it.
    """
    load, known = base_model.load_base, {}

    def loaded(model: str, **how: Any) -> Base:
        key = repr(sorted(how.items(), key=lambda item: item[0]))
        if key not in known:
            known[key] = load(model, **how)
        return known[key]

    base_model.load_base = loaded
    base_model.load_study_base(config, base_model.resolve_device("cpu"), base_model.study_dtype(config))
    _encode_once()
    opened = open_inputs(config)
    for samples in (opened.validation_set, opened.calibration_set(config.calibration.seeds[0])):
        for number in range(len(samples)):
            samples[number]
    measured = Cost(**cost[0] | {"scoring": Scoring(**cost[0]["scoring"])}), AdapterBatches(**cost[1])
    packs.measure_cost = lambda *_, **__: measured


def _encode_once() -> None:
    encode, encoded = dataset.encode_sample, {}

    def known(sample: Sample, processor: Any, max_tokens: int | None = None) -> Encoded:
        key = (str(sample.source), id(processor), max_tokens)
        if key not in encoded:
            encoded[key] = encode(sample, processor, max_tokens)
        return encoded[key]

    dataset.encode_sample = known


def note_costs() -> list[Any]:
    """A list that gets what `measure_cost` finds from now on, as JSON values."""
    found: list[Any] = []

    def noted(*args: Any, **kwargs: Any) -> tuple[Cost, AdapterBatches]:
        cost, adapter_batches = measure_cost(*args, **kwargs)
        found.append([asdict(cost), asdict(adapter_batches)])
        return cost, adapter_batches

    packs.measure_cost = noted
    return found


def run_study(config: StudyConfig) -> None:
    """Every stage that is missing, as `mars run` does it."""
    torch.set_num_threads(1)
    study_flow.fn(config)


def results_of(config: StudyConfig) -> dict[str, Any]:
    """What a study has come to, apart from times: hashes of what it measured, chose and trained, and MLflow's rows."""
    revision = Revision(Path(config.study), 1)
    files = sorted(revision.path("calibration").glob("*.parquet"))
    rows = pd.concat([pd.read_parquet(file) for file in files]).sort_values(KEYS).reset_index(drop=True)
    adapter = load_file(next(revision.path("final").glob("*/adapter/adapter_model.safetensors")))
    choice = json.loads(revision.path("choice.json").read_text())
    return {
        "rows": len(rows),
        "double_rows": int(rows.duplicated(KEYS).sum()),
        "metrics": _sha(rows[MEASURED].to_csv(index=False, float_format="%.17g")),
        "laws": _sha(revision.path("laws.json").read_text()),
        "choice": _sha(json.dumps(choice, sort_keys=True)),
        "pair": choice["pair"],
        "adapter": _sha("".join(f"{name}{adapter[name].tolist()}" for name in sorted(adapter))),
        "scores": _sha(json.dumps(_scores(json.loads(revision.path("evaluation.json").read_text())), sort_keys=True)),
        "mlflow": _tracked(config),
        "unfinished_states": len(list(revision.path("calibration", "state").glob("*/state.safetensors"))),
    }


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


VOLATILE = ("seconds", "mlflow_run_id", "path", "per_second", "adapter", "report")


def _scores(value: Any) -> Any:
    """Without what differs from one undisturbed run to the next."""
    if isinstance(value, dict):
        return {key: _scores(item) for key, item in value.items() if not any(word in key for word in VOLATILE)}
    return [_scores(item) for item in value] if isinstance(value, list) else value


def _tracked(config: StudyConfig) -> dict[str, Any]:
    """MLflow's finished runs: how often each name stands there, which parameters, at which steps each metric."""
    mlflow.set_tracking_uri(tracking_uri(Path(config.study)))
    client = mlflow.MlflowClient()
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()], max_results=1000)
    names = {run.info.run_id: run.info.run_name.replace(Path(config.study).name, "study") for run in runs}
    finished = [run for run in runs if run.info.status == "FINISHED" and SUPERSEDED_TAG not in run.data.tags]
    curves = {}
    for run in finished:
        for name in ("val_loss", "eval_loss"):
            if name in run.data.metrics:
                steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
                curves[f"{names[run.info.run_id]} {name}"] = steps if len(steps) < 2 else sorted(steps)
    return {
        "finished": dict(sorted(Counter(names[run.info.run_id] for run in finished).items())),
        "parameters": dict(sorted((names[run.info.run_id], len(run.data.params)) for run in finished)),
        "steps": dict(sorted(curves.items())),
        "open": sorted(names[run.info.run_id] for run in runs if run.info.status == "RUNNING"),
    }
