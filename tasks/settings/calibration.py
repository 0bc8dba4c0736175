"""The `calibration` and `fit` sections: the short runs, and the laws that are fitted to them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from mars_core.ranks import RankGrid, RankPair
from mars_core.rates import LearningRates
from tasks.settings.ranks import Ranks, rank_grid
from tasks.settings.rates import rate_grid, rates_text
from tasks.settings.section import Section


class CalibrationConfig(Section):
    """The short runs that the laws are fitted to."""

    ranks: Ranks = Field(
        (8, 16, 32, 64),
        description="Ranks of both modules, or of each (`{me: [0, 8, 16], llm: [8, 16, 32]}`): every pair is "
        "calibrated; 0 is a module without adapters",
    )
    learning_rates: Annotated[str | None, BeforeValidator(rates_text)] = Field(
        None,
        description="Peak learning rates that every pair is calibrated at, such as `[1e-4, 2e-4, 4e-4]` or "
        "`{me: [1e-4, 2e-4], llm: [1e-4]}` for every combination; `auto` finds them by short test runs, and fewer runs "
        "then suffice (default: only the recipe's)",
    )
    confirm_runs: int = Field(
        4,
        ge=0,
        description="With `learning_rates: auto`: the pairs that may be best are trained again, with further seeds, by "
        "at most so many runs for each pair and seed of the calibration; fewer where the answer is sure, 0 for none",
    )
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
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must not repeat, got {list(self.seeds)}")
        for ranks in self.grid:
            if sum(rank > 0 for rank in ranks) < 2:
                raise ValueError(f"a law in the rank needs at least 2 different ranks above 0, got {list(ranks)}")
        if self.smallest_size > self.samples:
            raise ValueError(f"smallest_size {self.smallest_size} is above samples {self.samples}")
        return self

    @property
    def grid(self) -> RankGrid:
        """Ranks of either module."""
        return rank_grid(self.ranks)

    @property
    def reference(self) -> RankPair:
        """The uniform default, where law C's slices cross: (16, 16) for 8, 16, 32, 64."""
        return self.grid.reference

    @property
    def rates(self) -> Literal["auto"] | tuple[LearningRates, ...] | None:
        """What `learning_rates` stands for."""
        return rate_grid(self.learning_rates)


class FitConfig(Section):
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
