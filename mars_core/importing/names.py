"""The caller's column names and ours."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

COLUMNS = {
    "r_me": "vision rank",
    "r_llm": "LLM rank",
    "D": "unique training samples seen",
    "step": "optimizer steps taken",
    "batch_size": "samples per step",
    "loss": "validation loss, nats per answer token",
    "lr": "learning rate at the step",
    "peak_lr": "peak learning rate of the run",
    "peak_lr_me": "peak learning rate of the vision encoder",
    "peak_lr_llm": "peak learning rate of the LLM",
    "seed": "seed of the run",
    "run_id": "which run a row belongs to",
    "t": "steps that the whole run needs to converge at this size",
    "t_me": "steps that the vision encoder needs to converge at this size",
    "t_llm": "steps that the LLM needs to converge at this size",
    "censored": "true where the times are only lower limits",
    "trainable_parameters": "LoRA parameters of the pair",
}


def rename_columns(table: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """The table under our names, with only the columns that we know.

    Args:
        table: as the caller has it.
        names: our name -> the caller's, for columns that are called otherwise.

    Raises:
        ValueError: a column that was named is not there.
    """
    present = [str(column) for column in table.columns]
    absent = {ours: theirs for ours, theirs in names.items() if theirs not in present}
    if absent:
        asked = ", ".join(f"{theirs!r} for {ours}" for ours, theirs in absent.items())
        raise ValueError(f"no column {asked}: the table has {present}")
    sources = {ours: names.get(ours, ours) for ours in COLUMNS}
    return pd.DataFrame({ours: table[theirs] for ours, theirs in sources.items() if theirs in present})
