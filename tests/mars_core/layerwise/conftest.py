"""Probes of made-up modules, and of the paper's."""

from __future__ import annotations

import pytest

from mars_core.layerwise.places import Place
from mars_core.layerwise.probe import Probe, ProbedLayer


def shapes(width, hidden, kv):
    """in and out features of each component of a LLaMA block."""
    return {
        "q": (width, width),
        "k": (width, kv),
        "v": (width, kv),
        "o": (width, width),
        "gate": (width, hidden),
        "up": (width, hidden),
        "down": (hidden, width),
    }


def llama(norms, *, width=2048, hidden=5632, kv=2048, factors=None, **columns):
    """A module with a block for each norm; factors: what a component's norm is over that of its block.

    columns: a function of (block, component) for each further column.
    """
    factors = factors or {}
    layers = []
    for block, norm in enumerate(norms):
        for component, (inner, outer) in shapes(width, hidden, kv).items():
            place = Place(f"model.layers.{block}.{component}_proj", block, component, inner, outer)
            own = norm * factors.get(component, 1.0)
            more = {name: column(block, component) for name, column in columns.items()}
            layers.append(ProbedLayer(place, own, own, **more))
    return Probe("llm", tuple(layers))


# Three groups far apart, as in the paper's example: layers 1-8, 9-12 and 13-24.
PAPER_NORMS = [
    *(0.2 + 0.01 * n for n in range(8)),
    *(0.5 + 0.01 * n for n in range(4)),
    *(1.0 + 0.01 * n for n in range(12)),
]


@pytest.fixture(scope="session")
def paper():
    """MobileLLaMA 1.4B: 24 blocks of width 2048, hidden width 5632, without grouped queries."""
    return llama(PAPER_NORMS)


@pytest.fixture(scope="session")
def grouped():
    """The same under grouped-query attention, keys and values a quarter as wide, as Qwen2's."""
    return llama(PAPER_NORMS, kv=512)


@pytest.fixture(scope="session")
def made():
    """Makes a probe."""
    return llama


@pytest.fixture(scope="session")
def shared_base(small_base):
    """In place of the demo's: what is tested of ranks that move holds for any model."""
    return small_base
