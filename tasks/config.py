"""The study configuration: what a user writes in STUDY.yaml or fills into the form of the Prefect UI.

Every field has a unit or range in its description; validation happens once, here. The config objects stop
at the tasks: mars_core receives plain values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mars_core.search import Constraint, MaxAdapterBytes, MaxTrainableParameters, SameParametersAsUniform
from mars_core.training.recipe import Recipe
from tasks.store import replacing

Rank = Annotated[int, Field(ge=0, le=4096)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Section):
    """Where the samples are and how they are split."""

    train: str = Field(description="Training data: a file (JSON, JSON lines, Parquet) or a folder (see the docs)")
    images: str | None = Field(None, description="Folder that image paths are relative to (default: the file's folder)")
    validation: str | None = Field(
        None, description="Calibration validation file; split off the training file if absent"
    )
    test: str | None = Field(None, description="Test file; split off the training file if absent")
    format: Literal["llava_json", "sharegpt", "messages", "scienceqa", "parquet", "datasets"] | None = Field(
        None, description="Format of the data (default: found by looking at it)"
    )
    train_split: str = Field("train", description="Split to read where `train` is a folder of several")
    validation_split: str = Field("validation", description="Split to read where `validation` is a folder of several")
    test_split: str = Field("test", description="Split to read where `test` is a folder of several")
    near_duplicates: Literal["together", "ignore"] = Field(
        "together", description="Whether images that are nearly the same stay in one split when MARS splits the data"
    )
    validation_samples: int = Field(500, ge=1, description="Samples of the calibration validation set")
    test_samples: int = Field(500, ge=1, description="Samples of the test set, if split off the training file")


class RecipeConfig(_Section):
    """Fine-tuning settings shared by calibration and the final run; defaults are the paper's (appendix G)."""

    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate")
    batch_size: int = Field(8, ge=1, description="Samples per optimizer step")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the schedule spent in warm-up")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient clipping norm over all adapters; 0 for none")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the LoRA matrices")
    max_tokens: int = Field(2048, ge=16, description="Longer samples are dropped and counted, never cut")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Dtype of the frozen base weights")

    def as_recipe(self) -> Recipe:
        """The recipe as mars_core's record."""
        return Recipe(**self.model_dump())


class CalibrationConfig(_Section):
    """The short runs that the laws are fitted to."""

    ranks: tuple[Rank, ...] = Field((8, 16, 32, 64), description="Ranks of both modules: every pair is calibrated")
    samples: int = Field(2048, ge=8, description="Training samples per pair (capped by the dataset)")
    smallest_size: int = Field(64, ge=1, description="Smallest effective dataset size that is measured")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="One calibration run per pair and seed")
    data_seed: int = Field(0, description="Seed of the order in which runs see the samples")
    parallel: int | None = Field(
        None,
        ge=1,
        description="Groups of runs trained at the same time, each with its share of the cores; changes no result "
        "(default: one per core on a CPU, one on a GPU)",
    )
    pack_runs: int | None = Field(
        None, ge=1, description="Most runs in one pack; smaller packs spread over more workers (default: all runs)"
    )
    pack_hours: float | None = Field(None, gt=0, description="Longest predicted time of one pack (default: no limit)")
    memory_gigabytes: float | None = Field(
        None, gt=0, description="Memory that a pack may use, the model included (default: 90% of what is free)"
    )
    snapshots: bool = Field(False, description="Keep every run's adapter at every checkpoint, as PEFT stores it")

    @model_validator(mode="after")
    def _distinct(self) -> CalibrationConfig:
        if len(set(self.ranks)) != len(self.ranks) or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("ranks and seeds must not repeat")
        if 0 in self.ranks:
            raise ValueError("rank 0 takes no part in a power law: give ranks of 1 or more")
        if len(self.ranks) < 2:
            raise ValueError(f"a law in the rank needs at least 2 different ranks, got {list(self.ranks)}")
        if self.smallest_size > self.samples:
            raise ValueError(f"smallest_size {self.smallest_size} is above samples {self.samples}")
        return self

    @property
    def reference_rank(self) -> int:
        """The lower middle of the grid: 16 for 8, 16, 32, 64."""
        ranks = sorted(self.ranks)
        return ranks[(len(ranks) - 1) // 2]


class FitConfig(_Section):
    """How the laws are fitted."""

    delta: float = Field(1e-3, gt=0, description="Huber threshold on log residuals")
    starts: int = Field(64, ge=1, description="Starting points of each fit")
    bootstrap: int = Field(200, ge=20, description="Bootstrap draws behind every interval")
    signal: Literal["slice"] = Field("slice", description="How a convergence time is given to a module")
    level: Literal["common", "own"] = Field("common", description="Loss level that counts as converged")


class SearchConfig(_Section):
    """How the pair is chosen."""

    ranks: tuple[Rank, ...] | None = Field(None, description="Available ranks (default: the calibration ranks)")
    target_samples: int | None = Field(None, ge=1, description="Dataset size to choose for (default: the training set)")
    law: Literal["mars", "paper"] = Field(
        "mars", description="`paper` keeps Eq. 1, Eq. 3 and the nearest rank as printed"
    )
    max_trainable_parameters: int | None = Field(None, ge=1, description="Largest number of LoRA parameters")
    max_adapter_megabytes: float | None = Field(None, gt=0, description="Largest adapter file, in MB at 4 bytes each")
    same_parameters_as_uniform: int | None = Field(
        None, ge=1, description="Only pairs with as many LoRA parameters as this uniform rank, within 10%"
    )
    margin: float = Field(0.0025, ge=0, lt=1, description="Relative excess loss that a cheaper pair may have")

    def as_constraints(self) -> list[Constraint]:
        """What the user demands of a pair, as mars_core's records."""
        found: list[Constraint] = []
        if self.max_trainable_parameters is not None:
            found.append(MaxTrainableParameters(self.max_trainable_parameters))
        if self.max_adapter_megabytes is not None:
            found.append(MaxAdapterBytes(int(self.max_adapter_megabytes * 1e6)))
        if self.same_parameters_as_uniform is not None:
            found.append(SameParametersAsUniform(self.same_parameters_as_uniform))
        return found


class FinalConfig(_Section):
    """The final fine-tune."""

    epochs: float = Field(
        1.0, gt=0, description="Passes over the training set (the paper: 3 on LLaVA, 12 on ScienceQA)"
    )
    seed: int = Field(0, description="Seed of adapters and sample order")
    compare_uniform: bool = Field(True, description="Also train the uniform-rank default at the same budget")


class StudyConfig(_Section):
    """One base model, one dataset, one recipe; everything it produces lies under `study`."""

    study: str = Field(description="Study folder: everything the study produces lies here")
    model: str = Field(description="Base checkpoint: a local folder or a hub id")
    data: DataConfig
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
    evaluation_batch_size: int = Field(32, ge=1, description="Samples per forward pass when scoring; changes no result")
    device: str = Field("auto", description="auto, cpu or cuda")

    @model_validator(mode="after")
    def _usable(self) -> StudyConfig:
        if "://" in self.study:
            raise ValueError(f"study {self.study!r} is a URL: study folders are local paths so far")
        ranks = self.search.ranks
        if ranks is not None and 0 in ranks:
            raise ValueError("search.ranks: rank 0 takes no part in a power law, give ranks of 1 or more")
        return self

    @property
    def available_ranks(self) -> tuple[int, ...]:
        """Ranks that the search may choose from, in increasing order."""
        return tuple(sorted(self.search.ranks or self.calibration.ranks))


def read_study(path: Path) -> StudyConfig:
    """Read and validate a study file; relative paths in it are relative to the file.

    Raises:
        ValueError: the file is missing, is not YAML, or has fields that are unknown, missing or out of range.
    """
    if not path.is_file():
        raise ValueError(f"there is no study file {path}: give the path of a STUDY.yaml (`mars demo` writes one)")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, expected a mapping with study, model and data")
    try:
        return StudyConfig.model_validate(_relative_to(values, path.parent))
    except ValidationError as error:
        raise ValueError(f"{path}: {_explain(error)}") from error


def write_study(config: StudyConfig, path: Path) -> None:
    """Write a study file that `read_study` reads back, with every default spelled out."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _relative_to(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    resolved = dict(values)
    if isinstance(study := resolved.get("study"), str):
        resolved["study"] = _resolve(study, folder)
    if isinstance(data := resolved.get("data"), dict):
        paths = ("train", "validation", "test", "images")
        resolved["data"] = data | {key: _resolve(data[key], folder) for key in paths if isinstance(data.get(key), str)}
    # A model that names a folder beside the study file is that folder; anything else may be a hub id.
    if isinstance(model := resolved.get("model"), str) and (folder / Path(model).expanduser()).is_dir():
        resolved["model"] = _resolve(model, folder)
    return resolved


def _resolve(path: str, folder: Path) -> str:
    return path if "://" in path else str((folder / Path(path).expanduser()).resolve())


def _explain(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "study"
        message = item["msg"].removeprefix("Value error, ")
        got = "" if item["type"] == "missing" or not item["loc"] else f", got {item['input']!r}"
        parts.append(f"{where}: {message}{got}")
    return "; ".join(parts)
