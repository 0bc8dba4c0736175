"""The compose file as docker compose would read it, with settings and secrets made by `docker/new-env`."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

DOCKER = Path(__file__).parents[2] / "docker"
# The forms of the compose specification that our files use: $$, ${NAME}, ${NAME:-default}, ${NAME:?message}.
VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\})")


def interpolate(value: Any, settings: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: interpolate(item, settings) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, settings) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match["name"] is None:
            return "$"
        found = settings.get(match["name"], "")
        if not found and match["kind"] == "?":
            raise ValueError(f"{match['name']}: {match['rest']}")
        return found or (match["rest"] if match["kind"] == "-" else "")

    return VARIABLE.sub(replace, value)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a fresh docker/.env holds."""
    folder = tmp_path_factory.mktemp("docker")
    for name in (".env.example", "new-env"):
        shutil.copy(DOCKER / name, folder)
    subprocess.run([folder / "new-env"], check=True, capture_output=True)
    return {key: value or "" for key, value in dotenv_values(folder / ".env", interpolate=False).items()}


@pytest.fixture(scope="session")
def compose() -> Callable[[Mapping[str, str]], dict[str, Any]]:
    """Reads compose.yaml with given settings."""

    def read(settings: Mapping[str, str]) -> dict[str, Any]:
        return interpolate(yaml.safe_load((DOCKER / "compose.yaml").read_text()), settings)

    return read


@pytest.fixture(scope="session")
def services(compose: Callable[[Mapping[str, str]], dict[str, Any]], settings: dict[str, str]) -> dict[str, Any]:
    """The services of compose.yaml with fresh settings."""
    return compose(settings)["services"]
