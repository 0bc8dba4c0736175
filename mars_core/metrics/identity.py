"""Hashes that identify runs, recipes and inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any


def content_hash(value: Any, *, length: int = 16) -> str:
    """Hexadecimal SHA-256 of a JSON-able value; equal values hash alike whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def run_id(
    *,
    model_id: str,
    data_hash: str,
    recipe_hash: str,
    r_me: int,
    r_llm: int,
    seed: int,
    data_seed: int,
    adapted: str,
    horizon: int,
    objective: str | None = None,
    learning_rates: Sequence[float] | None = None,
    part: str | None = None,
) -> str:
    """Identity of a calibration run: the same inputs give the same id on any machine.

    data_hash: hash of the data that the run reads. adapted: hash of the adapted modules' names. horizon: steps that the
    schedule spans. objective: identity of the metric measured beside the loss, None for none: a run that was not
    measured by it cannot stand in for one that was. learning_rates: peak rates of the run, None for the recipe's. part:
    what the run is for, None for the laws.
    """
    inputs: list[Any] = [model_id, data_hash, recipe_hash, r_me, r_llm, seed, data_seed, adapted, horizon]
    if objective is not None:
        inputs.append(objective)
    # Named, so that none of them can stand for another; absent, so that ids of before stay as they were.
    later = {"learning_rates": None if learning_rates is None else list(learning_rates), "part": part}
    given = {name: value for name, value in later.items() if value is not None}
    return content_hash([*inputs, given] if given else inputs, length=12)
