"""Tables of runs whose true losses are known."""

import numpy as np
import pandas as pd
import pytest

STEPS = (8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256)


def cosine(step, horizon=256, warmup=26):
    """Relative learning rate of an optimizer step: the product's own schedule."""
    return step / warmup if step < warmup else 0.5 * (1 + np.cos(np.pi * (step - warmup) / (horizon - warmup)))


RANKS = (8, 32, 64)


def build_table(loss, ranks_me=RANKS, ranks_llm=RANKS, seeds=1, noise=0.0, lr=None, rng=0, steps=STEPS):
    """Points as `mars_core.search.points` makes them; `loss(r_me, r_llm, D)` in nats, noise of run and checkpoint."""
    generator, rows = np.random.default_rng(rng), []
    for seed in range(seeds):
        for r_me in ranks_me:
            for r_llm in ranks_llm:
                level = noise * generator.standard_normal()
                for step in steps:
                    own = loss(r_me, r_llm, 8 * step) * np.exp(level + noise * generator.standard_normal())
                    row = {"r_me": r_me, "r_llm": r_llm, "seed": seed, "run_id": f"{r_me}-{r_llm}-{seed}", "step": step}
                    rows.append({**row, "D": 8 * step, "loss": own, "value": own, "val_loss": own})
    table = pd.DataFrame(rows)
    return table if lr is None else table.assign(lr=[lr(step) for step in table["step"]])


@pytest.fixture(scope="session")
def table_of():
    return build_table


@pytest.fixture(scope="session")
def eq1():
    """Eq. 1: loss = 3 / (r_me^0.05 r_llm^0.1 (D / 100)^0.3) + 0.8."""
    return lambda r_me, r_llm, D: 3.0 * r_me**-0.05 * r_llm**-0.1 * (D / 100) ** -0.3 + 0.8


@pytest.fixture(scope="session")
def schedule():
    return cosine
