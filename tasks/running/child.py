"""The environment of processes that this project starts."""

from __future__ import annotations

from collections.abc import Mapping


def path_safe(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with which Python imports nothing from the directory that it is started in.

    A `tasks.py` or `flows/` there, such as Invoke's, would take the place of this project's packages.
    """
    return {**environment, "PYTHONSAFEPATH": "1"}
