"""The signals that read a module's convergence off loss curves, by name."""

from collections.abc import Callable, Sequence

from mars_core.convergence.curve import Curve
from mars_core.convergence.selection import Selection
from mars_core.convergence.signal_isolated import select_isolated
from mars_core.convergence.signal_slice import select_slices

SIGNALS: dict[str, Callable[[Sequence[Curve], tuple[int, int] | None], Selection]] = {
    "slice": select_slices,
    "isolated": select_isolated,
}


def select(signal: str, curves: Sequence[Curve], reference: tuple[int, int] | None) -> Selection:
    """The runs that speak for each module under a loss-based signal."""
    if signal not in SIGNALS:
        raise ValueError(f"unknown signal {signal!r}, expected one of {', '.join(SIGNALS)}, trajectory.")
    return SIGNALS[signal](curves, reference)
