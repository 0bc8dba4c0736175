"""Metrics by name: the shipped ones, and those that installed packages declare as entry points.

Only what is installed as a package can be named, so no study file or form can have code run that nobody installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from mars_core.evaluation.objectives.exact_match_error import exact_match_error
from mars_core.evaluation.objectives.letter_error import letter_error
from mars_core.evaluation.objectives.record import Metric
from mars_core.evaluation.objectives.token_error import token_error
from mars_core.metrics.schema import PERPLEXITY

GROUP = "mars.metrics"
SHIPPED: dict[str, Metric] = {
    "token_error": token_error,
    "exact_match_error": exact_match_error,
    "letter_error": letter_error,
}


@dataclass(frozen=True)
class NamedMetric:
    """A metric with its name; identity tells it from another version of itself (`name (package version)`)."""

    name: str
    identity: str
    function: Metric


def find_metric(name: str) -> NamedMetric:
    """The metric of this name.

    Raises:
        ValueError: there is none, there are several, or its package does not import.
    """
    declared = [point for point in entry_points(group=GROUP) if point.name == name]
    if name in SHIPPED:
        if declared:
            raise ValueError(f"{_package(declared[0])} calls a metric {name!r} as one that MARS ships: rename it")
        return NamedMetric(name, name, SHIPPED[name])
    if not declared:
        raise ValueError(
            f"unknown objective {name!r}: there are {', '.join(available())}; your own is an entry point in group "
            f"`{GROUP}` of an installed package"
        )
    if len(declared) > 1:
        packages = " and ".join(map(_package, declared))
        raise ValueError(f"{packages} both declare a metric {name!r}: uninstall or rename one")
    return NamedMetric(name, f"{name} ({_package(declared[0])})", _load(declared[0]))


def available() -> tuple[str, ...]:
    """Names that an objective may have."""
    return (PERPLEXITY, *SHIPPED, *sorted({point.name for point in entry_points(group=GROUP)} - SHIPPED.keys()))


def _load(point: EntryPoint) -> Metric:
    try:
        function = point.load()
    except Exception as error:  # whatever a user's module raises when it is imported
        raise ValueError(f"metric {point.name!r} ({point.value}) does not import: {error!r}") from error
    if not callable(function):
        raise ValueError(f"metric {point.name!r} ({point.value}) is {function!r}: expected a function of records")
    found: Metric = function
    return found


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
