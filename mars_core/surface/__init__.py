"""Posterior of the loss over rank pairs and dataset size, from a calibration's curves. No torch."""

from mars_core.surface.curves import Curves, after_warmup, read_curves
from mars_core.surface.level import Level, fit_level
from mars_core.surface.posterior import Surface, fit_surface, without_differences

__all__ = [
    "Curves",
    "Level",
    "Surface",
    "after_warmup",
    "fit_level",
    "fit_surface",
    "read_curves",
    "without_differences",
]
