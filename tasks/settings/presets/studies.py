"""Study files from shipped settings and the user's model and data."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from tasks.settings.study import StudyConfig
from tasks.storage.files import replacing
from tasks.storage.location import is_remote, local_path

SHIPPED = files("tasks.settings.presets")


@dataclass(frozen=True)
class Files:
    """What a study is made of; relative paths are relative to the working directory."""

    study: str
    model: str
    data: str
    images: str | None = None
    validation: str | None = None
    test: str | None = None


def shipped_presets() -> list[str]:
    """Names of the studies that ship, in order."""
    return sorted(entry.name.removesuffix(".yaml") for entry in SHIPPED.iterdir() if entry.name.endswith(".yaml"))


def describe_preset(name: str) -> str:
    """What a shipped study is, in a line."""
    return _text(name).partition("\n")[0].lstrip("# ")


def write_preset(name: str, given: Files, output: Path, *, replace: bool) -> None:
    """Write a study file: a shipped study's settings for this model and data, with every default spelled out.

    Raises:
        ValueError: there is no such study, no such data, or the file is there and may not be replaced.
    """
    if output.exists() and not replace:
        raise ValueError(f"{output} exists: give another name with -o, or --force to write over it")
    config = StudyConfig.model_validate(_values(name, given))
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    with replacing(output) as temporary:
        temporary.write_text(f"# {name}: {describe_preset(name)}\n{text}", encoding="utf-8")


def named_files(given: Files) -> dict[str, Any]:
    """The beginnings of a study file: full paths of folder, model and data.

    Raises:
        ValueError: there is no such file.
    """
    data = {"train": given.data, "images": given.images, "validation": given.validation, "test": given.test}
    for what, path in data.items():
        if path and not is_remote(path) and not local_path(path).exists():
            raise ValueError(f"there is no {path}: correct --{'data' if what == 'train' else what}")
    here = {part: _from_here(path) for part, path in data.items() if path is not None}
    model = _from_here(given.model) if Path(given.model).expanduser().is_dir() else given.model
    return {"study": _from_here(given.study), "model": model, "data": here}


def _values(name: str, given: Files) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(_text(name))
    named = named_files(given)
    return {**named, **settings, "data": named["data"] | settings.get("data", {})}


def _from_here(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _text(name: str) -> str:
    if name not in shipped_presets():
        raise ValueError(f"there is no study {name!r} among those that ship: use one of {', '.join(shipped_presets())}")
    return SHIPPED.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
