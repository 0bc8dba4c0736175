"""What the report says of layer-wise ranks."""

from dataclasses import replace

import pytest

from mars_core.report import render, render_with_figures
from mars_core.report.layer_ranks import shared_rows, use_rows, use_sentences


@pytest.fixture(autouse=True)
def one_figure(monkeypatch):
    """Drawing is what a report takes its time for."""
    plots = [plot if plot.name == "layer-ranks" else replace(plot, draw=lambda *_: None) for plot in render.PLOTS]
    monkeypatch.setattr(render, "PLOTS", plots)


def layer(block, component, rank, **more):
    place = {"module": "llm", "layer": f"layers.{block}.{component}_proj", "block": block, "component": component}
    return place | {"rank": rank} | more


@pytest.fixture
def refined(data):
    rows = [
        layer(block, component, rank + block, uniform_rank=8, gradient_norm=0.1 + block)
        for block in (0, 1)
        for component, rank in (("q", 6), ("up", 9))
    ]
    shared = {
        "name": "hydra-me8-llm8",
        "title": "HyDRA, fine ranks (setting1)",
        "pair": [8, 8],
        "modules": {"llm": {"rank": 8, "blocks": 2, "budget": 4000, "spent": 3990}},
        "rows": rows,
    }
    used = [
        layer(0, "q", 8, stable_rank=1.2, utilisation=0.25),
        layer(0, "up", 8, stable_rank=2.0, utilisation=0.5),
        layer(1, "q", 8, stable_rank=3.0, utilisation=0.25),
        layer(1, "up", 8, stable_rank=5.0, utilisation=0.5),
        layer(None, "linear_1", 8, stable_rank=5.0, utilisation=0.3),
    ]
    full = [layer(0, "q", 8, stable_rank=7.0, utilisation=1.0)]
    spectra = [{"name": "me8-llm8", "rows": used}, {"name": "hydra-me8-llm8", "rows": full}]
    return replace(data, layer_ranks={"shared": [shared], "spectra": spectra})


def test_ranks_stand_beside_the_gradient_norms_and_what_they_take(refined):
    assert shared_rows(refined) == [
        {
            "name": "hydra-me8-llm8",
            "title": "HyDRA, fine ranks (setting1)",
            "module": "llm",
            "uniform": 8,
            "ranks": "6 to 10",
            "spent": "3,990",
            "share": "99.75%",
        }
    ]
    page, figures = render_with_figures(refined)
    assert 'id="figure-layer-ranks"' in page
    assert "LLM: gradient norm" in figures["layer-ranks"]
    assert "HyDRA, fine ranks (setting1)" in page


def test_use_of_ranks_is_said_per_block_and_in_words(refined):
    first, second, third = use_rows(refined)
    assert (first["block"], first["ranks"], first["stable"], first["used"]) == (1, "8", "1.6", "38%")
    assert (second["block"], second["stable"]) == (2, "4.0")
    assert third["name"] == "hydra-me8-llm8"
    wasteful, full = use_sentences(refined)
    assert wasteful == "me8-llm8: llm uses 36% of its ranks, so less rank may have done."
    assert full == "hydra-me8-llm8: llm uses 100% of its ranks, so more rank may help."


def test_without_layer_wise_ranks_nothing_is_said(data):
    page, figures = render_with_figures(data)
    assert "Ranks over the layers" not in page
    assert "layer-ranks" not in figures
