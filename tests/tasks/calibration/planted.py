"""Calibration runs whose losses are planted: a parabola in the log learning rate with a known best rate."""

from __future__ import annotations

import math

import pandas as pd
import pyarrow.parquet as pq

from mars_core.metrics.schema import PEAKS, SCHEMA, SCHEMA_VERSION, to_table
from tasks.calibration.stored import run_files
from tasks.storage.files import replacing, write_json


def planted(best):
    """Loss of a run: a parabola in the log rate about `best`, at every size; None (diverged) at 1e-2 and above."""

    def loss(run, step):
        rate = run.learning_rates.llm if run.learning_rates else 1e-3
        if rate >= 1e-2:
            return None
        return 2.0 + 0.5 / step + 0.05 * math.log(rate / best) ** 2 + 0.01 / (1 + sum(run.pair))

    return loss


def train(study, runs, loss):
    for run in runs:
        rows = [row(study, run, step, loss(run, step)) for step in run.schedule.checkpoint_steps]
        rows = [one for one in rows if one["val_loss"] is not None]
        metrics, summary = run_files(study.revision, [run])
        with replacing(metrics) as temporary:
            pq.write_table(to_table(pd.DataFrame(rows, columns=SCHEMA.names)), temporary)
        write_json(summary, {"diverged_at": None if rows else 1, "wall_seconds": 1.0, "peak_memory_bytes": 1})


def row(study, run, step, loss):
    rates = run.learning_rates or study.config.recipe.as_recipe().learning_rates
    words = ("study_id", "pack_id", "device", "recipe_hash", "data_hash", "model_id", "code_version")
    numbers = ("train_loss", "val_accuracy", "lr", "grad_norm_me", "grad_norm_llm", "wall_seconds")
    return {
        **dict.fromkeys(words, "x"), **dict.fromkeys(numbers, 0.5), **dict(zip(PEAKS, rates, strict=True)),
        "schema_version": SCHEMA_VERSION, "revision": 1, "run_id": run.run_id, "r_me": run.pair.r_me,
        "r_llm": run.pair.r_llm, "seed": run.seed, "data_seed": run.data_seed, "step": step, "samples_seen": 8 * step,
        "unique_samples": 8 * step, "val_loss": loss, "val_perplexity": None if loss is None else math.exp(loss),
        "objective": "perplexity", "val_objective": None, "clipped_share": 0.0, "peak_memory_bytes": 1,
    }  # fmt: skip
