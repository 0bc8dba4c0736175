"""Convergence times: how many steps each module (vision encoder, LLM) needs, read off calibration runs.

Law C (Eq. 2) is fitted to these times. Imports no torch.
"""

from mars_core.convergence.curves import has_runs_per_size
from mars_core.convergence.errors import NoConvergenceTimes
from mars_core.convergence.levels import LossLevel, LossLevels, freeze_levels
from mars_core.convergence.separability import Separability, separability, with_separability
from mars_core.convergence.signals import lower_middle, reference_pair
from mars_core.convergence.times import convergence_times
from mars_core.convergence.trajectory import relative_distance, steps_at_peak

__all__ = [
    "LossLevel",
    "LossLevels",
    "NoConvergenceTimes",
    "Separability",
    "convergence_times",
    "freeze_levels",
    "has_runs_per_size",
    "lower_middle",
    "reference_pair",
    "relative_distance",
    "separability",
    "steps_at_peak",
    "with_separability",
]
