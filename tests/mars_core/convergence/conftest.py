"""Checkpoint tables with convergence times known in closed form, as fixtures that give the builders."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import pytest

BATCH = 8
STEPS = tuple(round(8 * 2 ** (i / 2)) for i in range(11))  # 8, 11, 16, ..., 256


def build_metrics(
    pairs: Iterable[tuple[int, int]],
    loss: Callable[[int, int, np.ndarray], np.ndarray],
    steps: tuple[int, ...] = STEPS,
    seeds: tuple[int, ...] = (0,),
) -> pd.DataFrame:
    """One run per pair and seed whose validation loss is `loss(r_me, r_llm, steps)`."""
    s = np.array(steps, dtype=float)
    runs = [
        pd.DataFrame(
            {
                "run_id": f"{r_me}-{r_llm}-{seed}",
                "step": steps,
                "samples_seen": BATCH * s,
                "unique_samples": (BATCH * s).astype(int),
                "r_me": r_me,
                "r_llm": r_llm,
                "seed": seed,
                "val_loss": loss(r_me, r_llm, s),
            }
        )
        for r_me, r_llm in pairs
        for seed in seeds
    ]
    return pd.concat(runs, ignore_index=True)


def build_grid(ranks: tuple[int, ...] = (2, 4, 8, 16)) -> list[tuple[int, int]]:
    return [(r_me, r_llm) for r_me in ranks for r_llm in ranks]


def build_log_linear_loss(gamma_me: float, gamma_llm: float, drop: float = 0.2):
    """loss = 3 - drop * ln(s / tau), tau = r_me^gamma_me r_llm^gamma_llm: linear in log s, so that
    interpolation is exact, and the time to any loss is proportional to tau."""

    def loss(r_me: int, r_llm: int, s: np.ndarray) -> np.ndarray:
        tau = float(r_me) ** gamma_me * float(r_llm) ** gamma_llm
        return 3.0 - drop * np.log(s / tau)

    return loss


@pytest.fixture(name="metrics_of")
def metrics_of_fixture():
    return build_metrics


@pytest.fixture(name="grid")
def grid_fixture():
    return build_grid


@pytest.fixture(name="log_linear_loss")
def log_linear_loss_fixture():
    return build_log_linear_loss
