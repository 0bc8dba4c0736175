"""Results of a planted study: known surfaces, fitted and searched by the project's own code."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mars_core.convergence import reference_pair
from mars_core.fitting import fit_law
from mars_core.report import ReportData
from mars_core.search import Question, choose_from, read_points
from mars_core.search.both_laws import LawSettings, laws_from, times_from_curves
from mars_core.search.objective import PERPLEXITY_OBJECTIVE

BATCH = 8
RANKS = (2, 4, 8, 16)
STEPS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
SIZES = (64, 128, 256, 512, 1024, 2048)
D_TARGET = 6000
PER_RANK = {"me": 3120, "projector": 640, "llm": 5400}


def planted_loss(r_me, r_llm, D):
    return 6.0 / (r_me**0.08 * r_llm**0.16 * np.asarray(D, dtype=float) ** 0.35) + 0.9


def metrics_of_planted_surface(seeds=(0,), noise=0.004, ranks=RANKS):
    rng = np.random.default_rng(0)
    rows = []
    for r_me in ranks:
        for r_llm in ranks:
            for seed in seeds:
                offset = rng.normal(0, noise)
                for step in STEPS:
                    loss = float(planted_loss(r_me, r_llm, step * BATCH) * np.exp(offset + rng.normal(0, noise / 4)))
                    rows.append(_row(r_me, r_llm, seed, step, loss))
    return pd.DataFrame(rows)


def _row(r_me, r_llm, seed, step, loss):
    return {
        "run_id": f"run-{r_me}-{r_llm}-{seed}",
        "r_me": r_me,
        "r_llm": r_llm,
        "seed": seed,
        "step": step,
        "samples_seen": step * BATCH,
        "unique_samples": step * BATCH,
        "train_loss": loss * 0.98,
        "val_loss": loss,
        "val_perplexity": float(np.exp(loss)),
        "val_accuracy": 0.2,
        "lr": 1e-3,
        "grad_norm_me": 0.3,
        "grad_norm_llm": 0.7,
        "wall_seconds": 0.08 * step,
        "peak_memory_bytes": 1_500_000_000,
    }


def trainable(pair):
    r_me, r_llm = pair
    return PER_RANK["me"] * r_me + (PER_RANK["projector"] + PER_RANK["llm"]) * r_llm


def law_p_points(metrics):
    return metrics[metrics["unique_samples"].isin(SIZES)].rename(columns={"unique_samples": "D", "val_loss": "loss"})


def laws_and_choice(metrics):
    reference = reference_pair(set(zip(metrics["r_me"], metrics["r_llm"], strict=True)))
    settings = LawSettings(reference, starts=16, bootstrap=60)
    points = read_points(metrics, PERPLEXITY_OBJECTIVE)
    laws = laws_from(points, times_from_curves(metrics, settings, None), settings)
    choice = choose_from(laws, points, Question(D_TARGET, trainable, reference))
    return json.loads(json.dumps(replace(laws, D_target=D_TARGET).to_json())), choice  # as the study folder stores them


def final(role, pair, shift=0.0):
    history = [
        {"step": s, "loss": 2.2 / s**0.1 + shift, "learning_rate": 1e-3, "grad_norm": 0.5} for s in range(10, 601, 10)
    ]
    history += [
        {"step": s, "eval_loss": 2.1 / s**0.1 + shift, "eval_perplexity": 4.0, "eval_accuracy": 0.4}
        for s in range(75, 601, 75)
    ]
    return {
        "role": role,
        "pair": list(pair),
        "steps": 600,
        "best_step": 600,
        "best_val_loss": 2.1 / 600**0.1 + shift,
        "seconds": 61.5,
        "trainable_parameters": trainable(pair),
        "history": history,
    }


def score(loss, accuracy, answers=400):
    return {
        "loss": loss,
        "perplexity": float(np.exp(loss)),
        "accuracy": accuracy,
        "n_tokens": 1700,
        "n_answers": answers,
    }


def scores(loss, accuracy):
    by_task = {"colour": score(loss - 0.2, accuracy + 0.1, 150), "count": score(loss + 0.1, accuracy - 0.1, 250)}
    return {"overall": score(loss, accuracy), "by_task": by_task}


def report_data(metrics, laws, choice, **changes):
    data = ReportData(
        study="Demo study",
        revision=1,
        created="2026-02-03T04:05:06+00:00",
        command="mars run studies/demo/study.yaml",
        versions={"python": "3.11.9", "torch": "2.13.0", "mars-rank-search": "0.1.0"},
        model={
            "id": "mars-demo-backbone",
            "model_type": "llava_onevision",
            "groups": {g: {"layers": n, "parameters_per_rank": PER_RANK[g]} for g, n in _LAYERS.items()},
        },
        data={
            "train": 6000,
            "validation": 300,
            "test": 400,
            "tasks": {"colour": 3100, "count": 2900},
            "data_hash": "9f31c0de",
            "dropped_too_long": 3,
        },
        recipe={"learning_rate": 0.001, "batch_size": 8, "warmup_ratio": 0.1, "dtype": "float32"},
        metrics=metrics,
        laws=laws,
        choice=choice.to_json(),
        adapter="studies/demo/revisions/001/final/8-16/adapter",
        finals=[final("chosen", choice.pair), final("uniform", (4, 4), 0.05)],
        evaluation={"base": scores(3.1, 0.11), "chosen": scores(1.21, 0.62), "uniform": scores(1.26, 0.6)},
        costs=[
            {"stage": "calibrate", "seconds": 312.4, "detail": "16 runs"},
            {"stage": "fit", "seconds": 2.2, "detail": "law P, law C"},
            {"stage": "search", "seconds": 0.1, "detail": ""},
            {"stage": "finetune", "seconds": 125.0, "detail": "chosen and uniform"},
            {"stage": "evaluate", "seconds": 9.0, "detail": "3 models"},
        ],
        notes=[],
    )
    return dataclasses.replace(data, **changes)


_LAYERS = {"me": 36, "projector": 2, "llm": 28}


@pytest.fixture(scope="session")
def planted():
    """Metrics, laws and choice of one planted study with one seed; do not change them in place."""
    metrics = metrics_of_planted_surface()
    return metrics, *laws_and_choice(metrics)


@pytest.fixture(scope="session")
def planted_metrics():
    """Function that makes checkpoint metrics of the planted surface."""
    return metrics_of_planted_surface


@pytest.fixture(scope="session")
def fit_form():
    """Function that fits another form of law P to checkpoint metrics."""
    return lambda metrics, form: fit_law(form, law_p_points(metrics), n_starts=8, n_bootstrap=30)


@pytest.fixture(scope="session")
def make_data():
    """Function that gathers a report's data from metrics, laws and choice."""
    return report_data


@pytest.fixture
def data(planted):
    """A report on everything."""
    return report_data(*planted)
