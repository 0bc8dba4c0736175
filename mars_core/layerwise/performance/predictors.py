"""Models of a run's metrics: HyDRA's Transformer encoder, and what it is held against (Table VIII)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import RandomForestRegressor
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPRegressor
from torch import Tensor, nn

from mars_core.layerwise.performance.encoding import Array

WIDTH, HEADS = 32, 4
"""The paper's model dimension and attention heads; one encoder layer."""
EPOCHS, RATE = 300, 3e-3


class Predictor(Protocol):
    """Learns metrics (n, m) from encoded schedules (n, T, F)."""

    def fit(self, x: Array, y: Array) -> Any:
        """Learn."""

    def predict(self, x: Array) -> Array:
        """Metrics, shape (n, m)."""


class Encoder:
    """One Transformer encoder layer over the blocks, their mean, and a linear head; L2 loss, Adam."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.model: nn.Module | None = None

    def fit(self, x: Array, y: Array) -> Encoder:
        """Learn; the same seed learns the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.model = _Network(x.shape[1], x.shape[2], y.shape[1]).double()
            optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE)
            inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
            self.model.train()
            for _ in range(EPOCHS):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(self.model(inputs), targets)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return self

    def predict(self, x: Array) -> Array:
        """Metrics, shape (n, m).

        Raises:
            ValueError: it has learned nothing yet.
        """
        if self.model is None:
            raise ValueError("the performance model has learned nothing yet: fit it first")
        self.model.eval()
        with torch.no_grad():
            found: Array = self.model(torch.from_numpy(x)).numpy()
        return found


class _Network(nn.Module):
    def __init__(self, tokens: int, features: int, metrics: int) -> None:
        super().__init__()
        self.entry = nn.Linear(features, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(tokens, WIDTH))
        self.encoder = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, metrics)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(self.entry(x) + self.places)
        found: Tensor = self.head(hidden.mean(dim=1))
        return found


class Flat:
    """A scikit-learn regressor on all features of a schedule in one row."""

    def __init__(self, regressor: Any) -> None:
        self.regressor = regressor

    def fit(self, x: Array, y: Array) -> Flat:
        """Learn."""
        self.regressor.fit(x.reshape(len(x), -1), y)
        return self

    def predict(self, x: Array) -> Array:
        """Metrics, shape (n, m)."""
        found = np.asarray(self.regressor.predict(x.reshape(len(x), -1)), dtype=np.float64)
        return found.reshape(len(x), -1)


def _lightgbm() -> Flat:
    try:
        from lightgbm import LGBMRegressor
    except ImportError as error:
        raise ValueError(
            "LightGBM is not installed: pip install 'mars-rank-search[performance-model]', or use another model"
        ) from error
    return Flat(MultiOutputRegressor(LGBMRegressor(n_estimators=100, min_child_samples=5, random_state=0, verbose=-1)))


PREDICTORS: Mapping[str, Callable[[], Predictor]] = {
    "transformer": Encoder,
    "mlp": lambda: Flat(MLPRegressor(hidden_layer_sizes=(WIDTH, WIDTH), max_iter=2000, random_state=0)),
    "lightgbm": _lightgbm,
    "random-forest": lambda: Flat(RandomForestRegressor(200, random_state=0)),
    "mean": lambda: Flat(DummyRegressor()),
}
"""By name; `mean` is always the mean of what was trained, which every model has to beat."""
