"""Domain errors of this package."""


class NoConvergenceTimes(RuntimeError):  # noqa: N818 - reads as the fact it states
    """The runs are valid but no convergence time can be read off them; the message says why."""


class NoReferenceRun(NoConvergenceTimes, ValueError):  # noqa: N818 - reads as the fact it states
    """No run stands at the reference pair where the slices cross: it was not calibrated, or it diverged."""
