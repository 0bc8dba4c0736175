"""The study configuration: what a user writes in STUDY.yaml or fills into the form of the Prefect UI.

Every field has a unit or range in its description; validation happens once, here. The config objects stop
at the tasks: mars_core receives plain values.
"""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from mars_core.ranks import RankGrid
from tasks.running.addresses import without_password
from tasks.settings.calibration import CalibrationConfig, FitConfig
from tasks.settings.data import DataConfig
from tasks.settings.final import EvaluationConfig, FinalConfig, RetentionConfig, TimeoutConfig
from tasks.settings.model import FamilyConfig, LoadingConfig
from tasks.settings.ranks import rank_grid
from tasks.settings.recipe import RecipeConfig
from tasks.settings.search import SearchConfig
from tasks.settings.section import BOTH, EACH, Section
from tasks.settings.unknown_keys import unknown_key
from tasks.settings.upstream import UpstreamTask
from tasks.storage.files import replacing
from tasks.storage.location import check_location, is_remote, local_path, read_text


class StudyConfig(Section):
    """One base model, one dataset, one recipe; everything it produces lies under `study`."""

    study: str = Field(
        min_length=1,
        description="Study folder: everything the study produces lies here; a path (in a form a full one) or a URL "
        "such as s3://bucket/study",
    )
    model: str = Field(min_length=1, description="Base checkpoint: a hub id, or the full path of a folder")
    data: DataConfig = Field(title="Data")
    family: FamilyConfig | None = Field(
        None, description="Where the model's modules are (default: looked up by its type; only unknown ones need it)"
    )
    loading: LoadingConfig = LoadingConfig()
    recipe: RecipeConfig = RecipeConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    fit: FitConfig = FitConfig()
    search: SearchConfig = SearchConfig()
    final: FinalConfig = FinalConfig()
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Samples per forward pass; gradients are accumulated to recipe.batch_size, which changes no result "
        "(default: the whole batch)",
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    upstream: tuple[UpstreamTask, ...] = Field(
        (), description="What the base model could do before: datasets that show what a fine-tune makes it forget"
    )
    retention: RetentionConfig = RetentionConfig()
    timeouts: TimeoutConfig = TimeoutConfig()
    evaluation_batch_size: int = Field(32, ge=1, description="Samples per forward pass when scoring; changes no result")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to train; `auto` takes the GPU if there is one (which: CUDA_VISIBLE_DEVICES)"
    )

    @model_validator(mode="after")
    def _usable(self) -> StudyConfig:
        if self.micro_batch_size is not None and self.recipe.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide recipe.batch_size {self.recipe.batch_size}"
            )
        if self.loading.spread and self.device == "cpu":
            raise ValueError("loading.spread is for GPUs, and device is cpu: set one of them otherwise")
        if "://" in self.model:
            raise ValueError(
                f"model: {without_password(self.model)!r} is a URL: give the id of a checkpoint on the Hub, or a folder"
            )
        data = self.data
        for location in (self.study, data.train, data.images, data.validation, data.test):
            check_location(location or "")
        for task in self.upstream:
            check_location(task.data)
            check_location(task.images or "")
        if len({task.name for task in self.upstream}) < len(self.upstream):
            raise ValueError(f"upstream: names must differ, got {', '.join(task.name for task in self.upstream)}")
        if self.search.law == "paper" and self.calibration.learning_rates is not None:
            raise ValueError(
                "search.law: paper is for runs of one learning rate, as in the paper, and calibration.learning_rates "
                "asks for several: leave it out, or take `law: mars`"
            )
        if not self.upstream and (self.search.max_forgetting, self.search.forgetting_weight) != (None, None):
            raise ValueError(
                "search.max_forgetting and search.forgetting_weight are about the tasks of the `upstream` section, and "
                "there are none: name what the base model could do before, or leave them out"
            )
        if self.search.forgetting_weight is not None and not self.calibration.snapshots:
            raise ValueError(
                "search.forgetting_weight scores the adapters of the calibration runs, which are not kept: set "
                "calibration.snapshots to true"
            )
        if self.search.ranks is not None:
            rank_grid(self.search.ranks)
        return self

    @property
    def short_name(self) -> str:
        """The study folder's own name, for timelines and lists."""
        return self.study.rstrip("/").replace("\\", "/").rpartition("/")[2]

    @property
    def available_ranks(self) -> RankGrid:
        """Ranks that the search may choose from."""
        return rank_grid(self.search.ranks) if self.search.ranks else self.calibration.grid


def read_study(path: Path | str) -> StudyConfig:
    """Read and validate a study file, local or at a URL; relative paths in it are relative to the file.

    Raises:
        ValueError: the file is missing, is not YAML, or has fields that are unknown, missing or out of range.
    """
    try:
        values = yaml.safe_load(_study_text(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, expected a mapping with study, model and data")
    try:
        return StudyConfig.model_validate(_relative_to(values, str(path)))
    except ValidationError as error:
        raise ValueError(f"{path}: {_explain(error)}") from error


def _study_text(path: Path | str) -> str:
    try:
        if is_remote(str(path)):
            return read_text(str(path))
        return local_path(str(path)).read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(
            f"there is no study file {path}: give the path of your STUDY.yaml (a study folder gets one when it is run)"
        ) from error


def require_full_paths(config: StudyConfig) -> None:
    """Refuse paths that depend on a working directory: a worker's is not the user's.

    Raises:
        ValueError: a path is relative.
    """
    named = {"study": config.study} | {f"data.{name}": value for name, value in _files(config.data).items()}
    for task in config.upstream:
        named |= {f"upstream.{task.name}.{name}": path for name, path in _parts(task).items()}
    named |= {"final.accelerate": config.final.accelerate} if config.final.accelerate else {}
    relative = [f"{name} = {path!r}" for name, path in named.items() if not ("://" in path or Path(path).is_absolute())]
    if relative:
        raise ValueError(
            f"relative paths mean nothing on a worker: got {', '.join(relative)}; give full paths that every worker has"
        )


def _files(data: DataConfig) -> dict[str, str]:
    named = {"train": data.train, "images": data.images, "validation": data.validation, "test": data.test}
    return {name: path for name, path in named.items() if path is not None}


def _parts(task: UpstreamTask) -> dict[str, str]:
    return {"data": task.data} | ({} if task.images is None else {"images": task.images})


def write_study(config: StudyConfig, path: Path) -> None:
    """Write a study file that `read_study` reads back, with every default spelled out."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _relative_to(values: dict[str, Any], file: str) -> dict[str, Any]:
    resolved = dict(values)
    if isinstance(study := resolved.get("study"), str):
        resolved["study"] = _resolve(study, file)
    if isinstance(data := resolved.get("data"), dict):
        paths = ("train", "validation", "test", "images")
        resolved["data"] = data | {key: _resolve(data[key], file) for key in paths if isinstance(data.get(key), str)}
    if isinstance(upstream := resolved.get("upstream"), list):
        resolved["upstream"] = [_resolved_task(task, file) if isinstance(task, dict) else task for task in upstream]
    if isinstance(final := resolved.get("final"), dict) and isinstance(final.get("accelerate"), str):
        resolved["final"] = final | {"accelerate": _resolve(final["accelerate"], file)}
    # A model that names a folder beside the study file is that folder; anything else may be a hub id.
    if isinstance(model := resolved.get("model"), str) and Path(local := _resolve(model, file)).is_dir():
        resolved["model"] = local
    return resolved


def _resolved_task(task: dict[str, Any], file: str) -> dict[str, Any]:
    return task | {key: _resolve(task[key], file) for key in ("data", "images") if isinstance(task.get(key), str)}


def _resolve(path: str, file: str) -> str:
    """A location as it is meant in a study file: an absolute path or a URL."""
    if "://" in path:
        return path if is_remote(path) else str(local_path(path))
    beside = Path(path).expanduser()
    if is_remote(file) and not beside.is_absolute():
        protocol, _, folder = file.rpartition("/")[0].partition("://")
        return f"{protocol}://{posixpath.normpath(f'{folder}/{path}')}"
    return str((local_path(file).parent / beside).resolve())


def _explain(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        place = [part for part in item["loc"] if part not in (BOTH, EACH)]
        if item["type"] == "extra_forbidden":
            parts.append(unknown_key(StudyConfig, place))
            continue
        where = ".".join(map(str, place))
        message = item["msg"].removeprefix("Value error, ")
        # A rule of our own says itself what it got.
        got = "" if item["type"] in ("missing", "value_error") else f", got {item['input']!r}"
        parts.append(f"{where}: {message}{got}" if where else message)
    return "; ".join(parts)
