"""The study configuration: what a user writes in STUDY.yaml or fills into the form of the Prefect UI.

Every field has a unit or range in its description; validation happens once, here. The config objects stop
at the tasks: mars_core receives plain values.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mars_core.models.families import Family
from mars_core.models.load_options import Loading
from mars_core.ranks import AlphaRule
from mars_core.search import Constraint, MaxAdapterBytes, MaxTrainableParameters, SameParametersAsUniform
from mars_core.training.recipe import Recipe
from tasks.settings.unknown_keys import unknown_key
from tasks.storage.files import replacing
from tasks.storage.location import check_location, is_remote, local_path, read_text

Rank = Annotated[int, Field(ge=0, le=4096)]


def _title(name: str, info: Any) -> str:
    return name.replace("_", " ").capitalize()


def _for_the_form(schema: dict[str, Any]) -> None:
    # A form shows a choice of types as tabs with "None" chosen; an optional value is better one empty field. A whole
    # optional section keeps its tabs: empty, its required fields would be missed.
    for field in schema.get("properties", {}).values():
        kinds = [kind for kind in field.get("anyOf", []) if kind != {"type": "null"}]
        if len(kinds) == 1 and "$ref" not in kinds[0]:
            del field["anyOf"]
            del field["default"]
            field |= kinds[0]
            if "enum" in field:
                field["enum"] = [*field["enum"], None]  # so that an absent choice may also be sent as null


def _is_empty(value: Any) -> bool:
    return value in (None, "", []) or (isinstance(value, dict) and all(map(_is_empty, value.values())))


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, field_title_generator=_title, json_schema_extra=_for_the_form
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, values: Any) -> Any:
        """A field that was emptied in a form is one that was not given."""
        if not isinstance(values, dict):
            return values
        optional = {name for name, field in cls.model_fields.items() if field.default is None}
        return {name: value for name, value in values.items() if not (name in optional and _is_empty(value))}


class DataConfig(_Section):
    """Where the samples are and how they are split."""

    train: str = Field(
        min_length=1,
        description="Training data: a file (JSON, JSON lines, Parquet) or a folder (see the docs); a path or a URL, as "
        "all of these",
    )
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
    shared_images: Literal["refuse", "note"] = Field(
        "refuse",
        description="Whether an image that stands in two of the given files is refused, or only noted: published "
        "splits may share some",
    )
    validation_samples: int = Field(
        500, ge=1, description="Samples of the calibration validation set, if split off the training file"
    )
    test_samples: int | None = Field(
        None,
        ge=1,
        description="Samples of the test set (default: 500 where it is split off the training file, else all of it)",
    )


class FamilyConfig(_Section):
    """Where a model that MARS does not know keeps its modules, as paths that `model.named_modules()` gives."""

    me: str = Field(min_length=1, description="Path of the vision encoder")
    projector: tuple[str, ...] = Field(
        (), description="Paths of what maps vision features to LLM embeddings; may lie inside `me`"
    )
    llm: str = Field(min_length=1, description="Path of the language model, without its output head")
    unused: tuple[str, ...] = Field(
        (), description="Regular expressions of linear layers that no logit depends on; they are never adapted"
    )

    @model_validator(mode="after")
    def _usable(self) -> FamilyConfig:
        for pattern in self.unused:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"unused: {pattern!r} is no regular expression ({error})") from error
        return self

    def as_family(self) -> Family:
        """The paths as mars_core's record."""
        return Family(**self.model_dump())


class LoadingConfig(_Section):
    """How the base model is loaded."""

    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = (
        Field(None, description="Attention of transformers (default: its own choice); results differ in rounding only")
    )
    trust_remote_code: bool = Field(False, description="Run code that lies in the checkpoint; read it first")
    four_bit: bool = Field(
        False, description="Frozen weights in 4 bits (NF4, as QLoRA): needs bitsandbytes, and changes every result"
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Final run: compute activations again in the backward pass; less memory, slower",
    )
    spread: bool = Field(False, description="Final run and test: spread the base model over all visible GPUs")

    def as_loading(self) -> Loading:
        """The settings as mars_core's record."""
        return Loading(self.attn_implementation, self.trust_remote_code, self.four_bit)


class RecipeConfig(_Section):
    """Fine-tuning settings shared by calibration and the final run; defaults are the paper's (appendix G)."""

    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate")
    batch_size: int = Field(8, ge=1, description="Samples per optimizer step")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the schedule spent in warm-up")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient clipping norm over all adapters; 0 for none")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the LoRA matrices")
    lora_alpha: str = Field(
        "2r",
        pattern=r"^(2r|sqrt|0*[1-9]\d*(\.\d+)?|0\.\d*[1-9]\d*)$",
        description="LoRA's alpha: `2r` (the paper), one number for all ranks, or `sqrt`, 8 times the root of the rank "
        "(rsLoRA's scaling); with the last two the best learning rate depends less on the rank",
    )
    max_tokens: int = Field(2048, ge=16, description="Longer samples are dropped and counted, never cut")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Dtype of the frozen base weights")

    def as_recipe(self) -> Recipe:
        """The recipe as mars_core's record."""
        return Recipe(**{**self.model_dump(), "lora_alpha": self.alpha_rule})

    @field_validator("lora_alpha", mode="before")
    @classmethod
    def _number_or_rule(cls, value: Any) -> Any:
        return f"{value:g}" if isinstance(value, int | float) else value

    @property
    def alpha_rule(self) -> AlphaRule:
        """How alpha follows from the rank, as mars_core has it."""
        return "2r" if self.lora_alpha == "2r" else "sqrt" if self.lora_alpha == "sqrt" else float(self.lora_alpha)

    def identity(self) -> dict[str, Any]:
        """The settings as stored studies are told apart by: one that came later is left out at its default."""
        stored = self.model_dump(mode="json")
        if self.lora_alpha == "2r":
            del stored["lora_alpha"]
        return stored


class CalibrationConfig(_Section):
    """The short runs that the laws are fitted to."""

    ranks: tuple[Rank, ...] = Field((8, 16, 32, 64), description="Ranks of both modules: every pair is calibrated")
    samples: int = Field(2048, ge=8, description="Training samples per pair (capped by the dataset)")
    smallest_size: int = Field(64, ge=1, description="Smallest effective dataset size that is measured")
    runs: Literal["one", "per_size"] = Field(
        "one",
        description="Runs of a pair and seed: `one`, all sizes read off its checkpoints, or `per_size`, one for each "
        "size 2^n with a schedule of its own, which takes up to twice the steps",
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="Each pair is calibrated once per seed")
    data_seed: int = Field(
        0, description="Seed of the order in which runs see the samples; a run adds its own seed to it"
    )
    parallel: int | None = Field(
        None,
        ge=1,
        description="Groups of runs trained at the same time, each with its share of the cores; changes no result "
        "(default: one per core on a CPU, one on a GPU)",
    )
    pack_runs: int | None = Field(
        None,
        ge=1,
        description="Most runs in one pack; smaller packs spread over more workers (default: all runs; 4 on workers)",
    )
    pack_hours: float | None = Field(
        None, gt=0, description="Longest predicted time of one pack (default: no limit); not on workers"
    )
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
    level: Literal["common", "own"] = Field(
        "common", description="Loss level that counts as converged: one for all runs of a size, or each run's own"
    )
    eps: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of a run's drop in loss that level `own` leaves; 0 is the paper's step of lowest perplexity",
    )


class SearchConfig(_Section):
    """How the pair is chosen."""

    ranks: tuple[Rank, ...] | None = Field(None, description="Available ranks (default: the calibration ranks)")
    target_samples: int | None = Field(
        None,
        ge=1,
        description="Dataset size to choose for, in unique samples (default: what the final run's epochs over the "
        "training set are worth)",
    )
    law: Literal["mars", "paper"] = Field(
        "mars", description="`paper` keeps Eq. 1, Eq. 3 and the nearest rank as printed"
    )
    max_trainable_parameters: int | None = Field(None, ge=1, description="Largest number of LoRA parameters")
    max_adapter_megabytes: float | None = Field(None, gt=0, description="Largest adapter file, in MB at 4 bytes each")
    same_parameters_as_uniform: int | None = Field(
        None, ge=1, description="Only pairs with as many LoRA parameters as this uniform rank, within 10%"
    )
    margin: float = Field(
        0.0025, ge=0, lt=1, description="Relative excess perplexity (or objective) that a cheaper pair may have"
    )
    objective: str = Field(
        "perplexity",
        pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$",
        description="What the search minimises: perplexity, token_error, exact_match_error, letter_error, or a metric "
        "of an installed package (entry points `mars.metrics`); set it before calibrating",
    )

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
    accelerate: str | None = Field(
        None,
        description="Configuration file of accelerate: train in its processes, by DDP or FSDP, to the same batch size "
        "(default: in one process, on one GPU)",
    )


class EvaluationConfig(_Section):
    """What the test split is scored by, beside perplexity."""

    answer_tokens: int = Field(
        16,
        ge=0,
        le=512,
        description="Test answers of at most this many tokens are also generated (greedily, at most this long) and "
        "scored by option letter or exact match; 0 for none",
    )


class TimeoutConfig(_Section):
    """How long training may take; what takes longer is ended as TimedOut, keeps its checkpoints and can go on later."""

    calibration_pack_hours: float | None = Field(
        None, gt=0, description="Longest that one calibration pack may train (default: no limit)"
    )
    final_run_hours: float | None = Field(
        None, gt=0, description="Longest that one final run (or baseline) may train (default: no limit)"
    )
    evaluation_hours: float | None = Field(
        None, gt=0, description="Longest that scoring on the test split may take (default: no limit)"
    )


class RetentionConfig(_Section):
    """What `mars clean` keeps of what a study no longer needs; what it needs is kept in any case."""

    revisions: int = Field(3, ge=1, description="Newest revisions that are kept whole")
    snapshots: bool = Field(False, description="Keep adapter snapshots after the laws were fitted")
    checkpoints: bool = Field(False, description="Keep resume states and checkpoints that nothing will go on from")
    other_adapters: bool = Field(
        True, description="Keep final adapters that are neither chosen nor the uniform default"
    )
    caches: bool = Field(True, description="Keep caches; they are made again when needed")


class StudyConfig(_Section):
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
        data = self.data
        for location in (self.study, data.train, data.images, data.validation, data.test):
            check_location(location or "")
        ranks = self.search.ranks
        if ranks is not None and 0 in ranks:
            raise ValueError("search.ranks: rank 0 takes no part in a power law, give ranks of 1 or more")
        return self

    @property
    def available_ranks(self) -> tuple[int, ...]:
        """Ranks that the search may choose from, in increasing order."""
        return tuple(sorted(self.search.ranks or self.calibration.ranks))


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
    named |= {"final.accelerate": config.final.accelerate} if config.final.accelerate else {}
    relative = [f"{name} = {path!r}" for name, path in named.items() if not ("://" in path or Path(path).is_absolute())]
    if relative:
        raise ValueError(
            f"relative paths mean nothing on a worker: got {', '.join(relative)}; give full paths that every worker has"
        )


def _files(data: DataConfig) -> dict[str, str]:
    named = {"train": data.train, "images": data.images, "validation": data.validation, "test": data.test}
    return {name: path for name, path in named.items() if path is not None}


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
    if isinstance(final := resolved.get("final"), dict) and isinstance(final.get("accelerate"), str):
        resolved["final"] = final | {"accelerate": _resolve(final["accelerate"], file)}
    # A model that names a folder beside the study file is that folder; anything else may be a hub id.
    if isinstance(model := resolved.get("model"), str) and Path(local := _resolve(model, file)).is_dir():
        resolved["model"] = local
    return resolved


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
        if item["type"] == "extra_forbidden":
            parts.append(unknown_key(StudyConfig, item["loc"]))
            continue
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        # A rule of our own says itself what it got.
        got = "" if item["type"] in ("missing", "value_error") else f", got {item['input']!r}"
        parts.append(f"{where}: {message}{got}" if where else message)
    return "; ".join(parts)
