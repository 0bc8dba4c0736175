"""The `calibration` and `fit` sections: the short runs, and the laws that are fitted to them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tasks.settings.section import Rank, Section


class CalibrationConfig(Section):
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
