"""Reports with a few of their figures: drawing is what a report takes its time for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from mars_core.report import render


@contextmanager
def figures_drawn(*names: str) -> Iterator[None]:
    """Reports with these figures alone."""
    plots = [plot if plot.name in names else replace(plot, draw=lambda data, results: None) for plot in render.PLOTS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "PLOTS", plots)
        yield
