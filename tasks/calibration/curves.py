"""What MLflow gets of a calibration run's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd


def curves(rows: pd.DataFrame) -> list[Mapping[str, float]]:
    """Metrics of each checkpoint with its step, from the rows as they are stored."""
    names = ["train_loss", "val_loss", "val_perplexity", "val_accuracy", "lr", "grad_norm_me", "grad_norm_llm"]
    if rows["val_objective"].notna().any():
        names.append("val_objective")
    table = rows[["step", *names]].to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in table]
