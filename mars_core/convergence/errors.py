"""The one domain error of this package."""


class NoConvergenceTimes(RuntimeError):  # noqa: N818 - reads as the fact it states
    """The runs are valid but no convergence time can be read off them; the message says why."""
