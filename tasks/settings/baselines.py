"""Baselines: what a study's chosen pair is compared with, each trained at the same budget (paper, section 3.1).

A baseline is a few lines of YAML: `method`, and that method's settings. Those that ship lie in
`tasks/settings/presets/baselines`; `NAME-NUMBERS` stands for one of them with other numbers, such as `uniform-32` or
`pair-64-16`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from mars_core.layerwise.dynamic import AT, DynamicRanks
from mars_core.ranks import LayerRanks, RankPair
from mars_core.rates import LearningRates, one_rate
from mars_core.training.methods import AdaLora, Dora, FullRank, GeoLora, LayerLora, Lora, Method, RsLora, Selective
from mars_core.training.recipe import Recipe
from tasks.settings.section import Rank, Rate

SHIPPED = files("tasks.settings.presets.baselines")
_NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"
_NAME = re.compile(rf"(?P<base>[a-z]+(?:-[a-z]+)*)-(?P<numbers>{_NUMBER}(?:-{_NUMBER})*)")
_USABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TUNED = "-tuned"
"""How the name of a baseline ends whose learning rate was searched for."""
_PAIR_FOLDER = re.compile(r"me\d+-llm\d+(-lr.*)?")


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    numbers: ClassVar[tuple[str, ...]] = ()
    """Settings that the numbers of `NAME-NUMBERS` stand for, in order."""
    rate_share: ClassVar[float] = 1.0
    """Of LoRA's learning rate: where the search for the method's own one begins."""

    @property
    def rates(self) -> LearningRates | None:
        """Peak rates that belong to the baseline; None where it has the recipe's."""
        return None

    def described(self) -> dict[str, Any]:
        """The settings as they are recorded beside a run."""
        return self.model_dump(mode="json")


class UniformSettings(_Settings):
    """LoRA with one rank everywhere."""

    method: Literal["uniform"]
    rank: Rank
    numbers: ClassVar = ("rank",)

    def as_method(self) -> Lora:
        """The method as mars_core's record."""
        return Lora(RankPair(self.rank, self.rank))


class PairSettings(_Settings):
    """LoRA with a fixed pair of ranks."""

    method: Literal["pair"]
    r_me: Rank
    r_llm: Rank
    numbers: ClassVar = ("r_me", "r_llm")

    def as_method(self) -> Lora:
        """The method as mars_core's record."""
        return Lora(RankPair(self.r_me, self.r_llm))


class LayerRanksSettings(_Settings):
    """LoRA with a rank for each layer, by its path; together they take no more than the pair (`mars refine`)."""

    method: Literal["layer-ranks"]
    r_me: Rank
    r_llm: Rank
    ranks: dict[str, Annotated[int, Field(ge=1, le=4096)]]

    def described(self) -> dict[str, Any]:
        """Without the ranks one by one."""
        return {"method": self.method, "pair": f"({self.r_me}, {self.r_llm})", "ranks": str(LayerRanks.of(self.ranks))}

    def as_method(self) -> LayerLora:
        """The method as mars_core's record."""
        return LayerLora(RankPair(self.r_me, self.r_llm), LayerRanks.of(self.ranks))


class LearningRateSettings(_Settings):
    """LoRA with one rank and a peak learning rate per module: what MARS replaces (paper, Tables 1 and 4).

    The paper gives rates of ME and LLM, from 1e-7 to 1e-5; `projector` is the LLM's where it is absent, as its rank is.
    """

    method: Literal["learning-rates"]
    rank: Rank
    me: Rate
    llm: Rate
    projector: Rate | None = None
    numbers: ClassVar = ("me", "llm")

    @property
    def rates(self) -> LearningRates:
        """Peak rates of the modules."""
        return LearningRates(self.me, self.projector or self.llm, self.llm)

    def as_method(self) -> Lora:
        """The method as mars_core's record."""
        return Lora(RankPair(self.rank, self.rank))


class DoraSettings(_Settings):
    """DoRA with one rank everywhere."""

    method: Literal["dora"]
    rank: Rank
    numbers: ClassVar = ("rank",)

    def as_method(self) -> Dora:
        """The method as mars_core's record."""
        return Dora(RankPair(self.rank, self.rank))


class RsLoraSettings(_Settings):
    """rsLoRA with one rank everywhere."""

    method: Literal["rslora"]
    rank: Rank
    numbers: ClassVar = ("rank",)

    def as_method(self) -> RsLora:
        """The method as mars_core's record."""
        return RsLora(RankPair(self.rank, self.rank))


class GeoLoraSettings(_Settings):
    """GeoLoRA that starts with one rank everywhere and takes no more parameters than it."""

    method: Literal["geolora"]
    rank: Rank
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.05
    numbers: ClassVar = ("rank",)
    rate_share: ClassVar[float] = 100.0  # gradient descent in place of Adam

    def as_method(self) -> GeoLora:
        """The method as mars_core's record."""
        return GeoLora(RankPair(self.rank, self.rank), self.tolerance)


class DynamicRanksSettings(_Settings):
    """LoRA that starts at a pair; each module's parameters are shared out over its layers anew as training goes on."""

    method: Literal["dynamic-ranks"]
    r_me: Rank
    r_llm: Rank
    allocation: Literal["fisher", "hydra", "hydra-coarse"] = "fisher"
    at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = AT
    numbers: ClassVar = ("r_me", "r_llm")

    def as_method(self) -> DynamicRanks:
        """The method as mars_core's record."""
        return DynamicRanks(RankPair(self.r_me, self.r_llm), self.allocation, self.at)


class AdaLoraSettings(_Settings):
    """AdaLoRA, pruned from `init_rank` (1.5 times the target by default) to an average of `target_rank`."""

    method: Literal["adalora"]
    target_rank: Annotated[int, Field(ge=1, le=4096)]
    init_rank: Annotated[int, Field(ge=2, le=4096)] | None = None
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    final: Annotated[float, Field(ge=0, lt=1)] = 0.5
    orthogonality: Annotated[float, Field(ge=0)] = 0.1
    beta1: Annotated[float, Field(gt=0, lt=1)] = 0.85
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.85
    numbers: ClassVar = ("target_rank",)

    def as_method(self) -> AdaLora:
        """The method as mars_core's record."""
        return AdaLora(**self.model_dump(exclude={"method"}))


class FullRankSettings(_Settings):
    """The linear layers' own weights."""

    method: Literal["full-rank"]
    rate_share: ClassVar[float] = 0.1

    def as_method(self) -> FullRank:
        """The method as mars_core's record."""
        return FullRank()


class SelectiveSettings(_Settings):
    """The own weights of some layers: the LLM's upper blocks (`share` of them), its last one, or the projector."""

    method: Literal["selective"]
    where: Literal["top", "last", "projector"]
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    rate_share: ClassVar[float] = 0.1

    def as_method(self) -> Selective:
        """The method as mars_core's record."""
        return Selective(self.where, self.share)


Settings = Annotated[
    UniformSettings
    | PairSettings
    | LayerRanksSettings
    | LearningRateSettings
    | DoraSettings
    | RsLoraSettings
    | GeoLoraSettings
    | DynamicRanksSettings
    | AdaLoraSettings
    | FullRankSettings
    | SelectiveSettings,
    Field(discriminator="method"),
]
SETTINGS: TypeAdapter[Any] = TypeAdapter(Settings)


@dataclass(frozen=True)
class Baseline:
    """A named baseline.

    name: as the user asked for it. learning_rates: peak rates that take the place of the recipe's. tuned:
    whether its rates were searched for.
    """

    name: str
    settings: _Settings
    learning_rates: LearningRates | None = None
    tuned: bool = False

    @property
    def method(self) -> Method:
        """The training method."""
        made: Method = self.settings.as_method()  # type: ignore[attr-defined]
        return made

    @property
    def pair(self) -> RankPair | None:
        """The rank pair where the baseline is nothing but a pair: its run is a final run like the chosen pair's."""
        method = self.method
        return method.pair if type(method) is Lora and self.settings.rates is None else None

    @property
    def slug(self) -> str:
        """Name of its folder and its stages: a rank pair's is that of the pair, whatever it was asked for as."""
        pair = self.pair
        if pair is None:
            return self.name
        return pair.slug if self.learning_rates is None else f"{pair.slug}-{self.learning_rates.slug}"

    @property
    def identity(self) -> dict[str, Any]:
        """What of it decides its run: ranks alone of a rank pair, and learning rates that are not the recipe's."""
        pair = self.pair
        rates = {} if self.learning_rates is None else {"learning_rates": list(self.learning_rates)}
        return ({"pair": list(pair)} if pair else {"baseline": self.settings.model_dump(mode="json")}) | rates

    def recipe(self, recipe: Recipe) -> Recipe:
        """A recipe with the rates that this is trained at."""
        rates = self.learning_rates or self.settings.rates
        return recipe if rates is None else replace(recipe, learning_rate=rates.llm, module_learning_rates=rates)

    def peak_rates(self, recipe: Recipe) -> LearningRates:
        """Peak rate of each module that it is trained at."""
        return self.recipe(recipe).learning_rates

    def at_rates(self, rates: LearningRates, recipe: Recipe) -> Baseline:
        """The same, trained at these peak rates; a pair at the recipe's is the pair as it is without any."""
        if isinstance(self.settings, LearningRateSettings):
            return replace(self, settings=self.settings.model_copy(update=rates._asdict()))
        pair = self.pair
        own = rates if pair is None else rates.of_pair(pair)
        usual = pair is not None and own == recipe.learning_rates.of_pair(pair)
        return replace(self, learning_rates=None if usual else own)

    def at_rate(self, rate: float, recipe: Recipe) -> Baseline:
        """The same at this peak rate of the LLM: the other modules have it too, or keep their proportions to it where
        the baseline is a proportion of rates."""
        if not isinstance(self.settings, LearningRateSettings):
            return self.at_rates(one_rate(rate), recipe)
        given = self.peak_rates(recipe)
        return self.at_rates(LearningRates(*(_plain(own * rate / given.llm) for own in given)), recipe)

    def as_tuned(self) -> Baseline:
        """The same under the name that it has with a rate of its own."""
        return replace(self, name=f"{self.name}{TUNED}", tuned=True)


def _plain(rate: float) -> float:
    return float(f"{rate:.6g}")  # a product of decimals that can be read


def of_pair(pair: RankPair, learning_rates: LearningRates | None = None) -> Baseline:
    """A rank pair as a baseline, named as its folder is where the rates are the recipe's."""
    settings = PairSettings(method="pair", r_me=pair.r_me, r_llm=pair.r_llm)
    return Baseline(pair.slug, settings, learning_rates)


def shipped_baselines() -> list[str]:
    """Names of the baselines that ship, in order."""
    return sorted(entry.name.removesuffix(".yaml") for entry in SHIPPED.iterdir() if entry.name.endswith(".yaml"))


def describe_baseline(name: str) -> str:
    """The first comment of a shipped baseline's file: what it is, in a line."""
    return SHIPPED.joinpath(f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def read_baseline(text: str) -> Baseline:
    """The baseline of this name, or in this YAML file.

    Raises:
        ValueError: there is none, or its settings are unknown or out of range.
    """
    if text.endswith((".yaml", ".yml")):
        path = Path(text).expanduser()
        if not path.is_file():
            raise ValueError(f"there is no baseline file {text}: give a YAML file or a name, {_names()}")
        return _made(path.stem, path.read_text(encoding="utf-8"), str(path), {})
    if text in shipped_baselines():
        return _made(text, _shipped(text), text, {})
    found = _NAME.fullmatch(text)
    if found is None or found["base"] not in shipped_baselines():
        raise ValueError(f"there is no baseline {text!r}: use {_names()}, or the path of a YAML file with a method")
    return _made(text, _shipped(found["base"]), text, {"numbers": re.findall(_NUMBER, found["numbers"])})


def _names() -> str:
    return f"one of {', '.join(shipped_baselines())}, or with other numbers such as uniform-32 or pair-64-16"


def _shipped(name: str) -> str:
    return SHIPPED.joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def _made(name: str, text: str, source: str, changes: dict[str, list[str]]) -> Baseline:
    if not _USABLE.fullmatch(name) or _PAIR_FOLDER.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a baseline: use letters, digits, points and hyphens")
    if name.endswith(TUNED):
        raise ValueError(f"{name!r} is how --tune-lr would name a baseline: use a name that does not end in {TUNED}")
    try:
        values = yaml.safe_load(text)
        settings = SETTINGS.validate_python(values)
        if given := changes.get("numbers"):
            settings = SETTINGS.validate_python(values | _numbered(name, settings, given))
    except yaml.YAMLError as error:
        raise ValueError(f"baseline {source} is not readable YAML: {error}") from error
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'baseline'}: {fault['msg']}" for fault in error.errors()
        )
        raise ValueError(f"baseline {source}: {faults}") from error
    return Baseline(name, settings)


def _numbered(name: str, settings: _Settings, given: list[str]) -> dict[str, str]:
    if len(given) != len(settings.numbers):
        expected = ", ".join(settings.numbers) or "none"
        raise ValueError(f"baseline {name!r} has {len(given)} numbers, expected {len(settings.numbers)} ({expected})")
    return dict(zip(settings.numbers, given, strict=True))
