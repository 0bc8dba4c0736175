"""Plan a calibration: the runs of every rank pair, learning rate and seed, their schedules and identities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from mars_core.metrics.identity import content_hash, run_id
from mars_core.models.lora import check_ranks, trainable_parameters
from mars_core.models.partition import GROUPS, Partition
from mars_core.ranks import RankPair
from mars_core.rate_search import RANGE, Confirmation, range_pairs
from mars_core.rate_search.range_test import range_steps
from mars_core.rates import LearningRates, one_rate
from mars_core.search.constraints import allowed_pairs
from mars_core.training.schedule import geometric_steps
from tasks.inputs.data import PARTS
from tasks.inputs.objective import measurement, objective_identity
from tasks.inputs.opened import Inputs
from tasks.settings.study import StudyConfig
from tasks.study.rates import DecidedRates
from tasks.study.revision import recipe_hash

CHECKPOINTS_PER_DOUBLING = 2
LOOKED_AT_FROM = 1 / 8
"""By this share of its steps a run made for one size has its first checkpoint: law C needs some before the end."""
WARNING = "WARNING: "  # how a note begins that may change the decision
_MUCH_DROPPED = 0.1  # above this share of too long samples a note becomes a warning


@dataclass(frozen=True)
class RunSchedule:
    """How long a run is and where it is looked at.

    horizon: optimizer steps of the run and of its learning-rate schedule. checkpoint_steps: steps at which it is
    evaluated, the horizon last. size: samples that it was made for, None where all sizes are read off the run.
    """

    horizon: int
    checkpoint_steps: tuple[int, ...]
    size: int | None = None


Part = Literal["calibration", "range-test"]


@dataclass(frozen=True)
class PlannedRun:
    """One calibration run to be.

    run_id: its identity. data_seed: decides the order of its samples. learning_rates: peak rates, None for the
    recipe's. part: `range-test` for a short run that says which rates to calibrate at; no law reads it.
    """

    run_id: str
    pair: RankPair
    seed: int
    schedule: RunSchedule
    data_seed: int = 0
    learning_rates: LearningRates | None = None
    part: Part = "calibration"

    @property
    def name(self) -> str:
        """How the run is called where people see it."""
        rates = "" if self.learning_rates is None else f" {self.learning_rates.slug}"
        size = "" if self.schedule.size is None else f" size{self.schedule.size}"
        test = " range test" if self.part == "range-test" else ""
        return f"{self.pair.slug}{rates} seed{self.seed}{size}{test}"


@dataclass(frozen=True)
class PlannedPack:
    """Calibration runs that one worker trains together over one frozen backbone."""

    runs: tuple[PlannedRun, ...]

    @property
    def pack_id(self) -> str:
        """Hash of the runs in it, whatever their order."""
        return content_hash(sorted(run.run_id for run in self.runs))

    @property
    def data_seed(self) -> int:
        """Seed of the one order in which its runs see the samples."""
        (seed,) = {run.data_seed for run in self.runs}
        return seed

    @property
    def schedule(self) -> RunSchedule:
        """The one schedule of its runs."""
        (schedule,) = {run.schedule for run in self.runs}
        return schedule

    @property
    def name(self) -> str:
        """How the pack is called where people see it."""
        first, *others = self.runs
        return f"{first.name} and {len(others)} more" if others else first.name


@dataclass(frozen=True)
class CalibrationPlan:
    """All runs of a revision.

    runs: those that are known; with automatic learning rates, those of the rounds decided so far. notes: what the user
    should know, such as a largest size capped by the dataset. outline: with automatic rates, a run of every pair, seed
    and schedule at the recipe's rate: what rates are found for. range_test: the short runs that say where to look.
    """

    runs: tuple[PlannedRun, ...]
    notes: tuple[str, ...]
    outline: tuple[PlannedRun, ...] = ()
    range_test: tuple[PlannedRun, ...] = ()

    @property
    def every_run(self) -> tuple[PlannedRun, ...]:
        """Those of the range test, then the others."""
        return (*self.range_test, *self.runs)

    @property
    def schedules(self) -> tuple[RunSchedule, ...]:
        """The different schedules of its runs, the longest first."""
        found = {run.schedule for run in self.outline or self.runs}
        return tuple(sorted(found, key=lambda one: one.horizon, reverse=True))

    @property
    def steps(self) -> int:
        """Optimizer steps of all runs together."""
        return sum(run.schedule.horizon for run in self.every_run)

    @property
    def run_lengths(self) -> str:
        """How long its runs are, in words."""
        longest, shortest = self.schedules[0].horizon, self.schedules[-1].horizon
        return f"{longest} steps" if longest == shortest else f"{shortest} to {longest} steps"

    @property
    def inputs_hash(self) -> str:
        """Hash of everything that decides the metrics of the whole calibration, its learning rates included."""
        looked_at = [one.checkpoint_steps for one in self.schedules]
        ids = sorted(run.run_id for run in self.outline or self.runs)
        automatic = ["automatic learning rates"] if self.outline else []
        return content_hash([ids, looked_at[0] if len(looked_at) == 1 else looked_at, *automatic])

    @property
    def rates_hash(self) -> str:
        """Hash of what decides which learning rates are tried, for rates that are stored once they are decided."""
        return content_hash([sorted(run.run_id for run in runs) for runs in (self.outline, self.range_test)])


def plan_calibration(inputs: Inputs, decided: DecidedRates | None = None) -> CalibrationPlan:
    """Lay out the calibration of a study; nothing is trained, and the model's weights are not read.

    decided: automatic learning rates as far as they are known; passed over where they were decided for another plan.

    Raises:
        ValueError: the dataset is smaller than the smallest size, or a rank does not fit the model.
    """
    partition = inputs.partition
    pairs, available = calibration_pairs(inputs.config), inputs.config.available_ranks
    count = partial(_count_parameters, partition)
    allowed_pairs(*available, inputs.config.search.as_constraints(), count)  # raises where they leave none
    wanted = [*pairs, *available.pairs]
    largest = RankPair(max(pair.r_me for pair in wanted), max(pair.r_llm for pair in wanted))
    for pair in [largest, *wanted]:  # the largest first: its message names every module that has no room
        check_ranks(partition, pair)
    schedules, notes = calibration_schedules(inputs)
    measurement(inputs)  # raises where the objective cannot be measured
    planned = _Planner(inputs)
    rates = inputs.config.calibration.rates
    if rates != "auto":
        own = {pair: _rates_of(pair, rates, inputs.config) for pair in pairs}
        return CalibrationPlan(planned.runs(own, schedules), notes)
    outline = planned.runs({pair: [None] for pair in pairs}, schedules)
    plan = CalibrationPlan(
        (), notes, outline, planned.range_test(schedules[0], range_pairs(*inputs.config.calibration.grid))
    )
    if decided is None or decided.plan != plan.rates_hash:
        return plan
    tried = {pair: _rates_of(pair, map(one_rate, given), inputs.config) for pair, given in decided.rates.items()}
    runs = planned.runs(tried, schedules)
    return replace(plan, runs=(*runs, *planned.confirming_runs(decided.confirmations, schedules)))


def plan_rates(inputs: Inputs, pair: RankPair, rates: Sequence[float]) -> CalibrationPlan:
    """The longest calibration runs of one pair at these learning rates, and a range test of that pair alone.

    A run that the calibration has too is the same run.

    Raises:
        ValueError: the dataset is too small, or the pair does not fit the model.
    """
    check_ranks(inputs.partition, pair)
    schedules, notes = calibration_schedules(inputs)
    planned = _Planner(inputs)
    own = {pair: _rates_of(pair, map(one_rate, rates), inputs.config)}
    runs = planned.runs(own, schedules[:1])
    return CalibrationPlan(runs, notes, range_test=planned.range_test(schedules[0], [pair]))


def _rates_of(pair: RankPair, rates: Iterable[LearningRates] | None, config: StudyConfig) -> list[LearningRates | None]:
    """Rates of a pair that differ for it, None for the recipe's: its runs may be stored already."""
    if rates is None:
        return [None]
    usual = config.recipe.as_recipe().learning_rates.of_pair(pair)
    return [None if own == usual else own for own in dict.fromkeys(one.of_pair(pair) for one in rates)]


@dataclass(frozen=True)
class _Planner:
    """Gives runs their identities."""

    inputs: Inputs

    @property
    def config(self) -> StudyConfig:
        """The study's settings."""
        return self.inputs.config

    def runs(
        self, rates: Mapping[RankPair, Sequence[LearningRates | None]], schedules: Sequence[RunSchedule]
    ) -> tuple[PlannedRun, ...]:
        """The runs of pairs at their learning rates, of every seed and schedule."""
        return tuple(
            self._run(pair, seed, schedule, own)
            for seed in self.config.calibration.seeds
            for schedule in schedules
            for pair, several in rates.items()
            for own in several
        )

    def confirming_runs(
        self, confirmations: Sequence[Confirmation], schedules: Sequence[RunSchedule]
    ) -> tuple[PlannedRun, ...]:
        """Runs of pairs with seeds of their own, of every schedule."""
        return tuple(
            self._run(RankPair(*one.pair), one.seed, schedule, own)
            for schedule in schedules
            for one in confirmations
            for own in _rates_of(RankPair(*one.pair), [one_rate(one.rate)], self.config)
        )

    def range_test(self, longest: RunSchedule, pairs: Sequence[RankPair]) -> tuple[PlannedRun, ...]:
        """The short runs, of the first seed, that say where to look for learning rates."""
        steps = range_steps(longest.horizon)
        schedule = RunSchedule(steps, (steps,))
        return tuple(
            self._run(pair, self.config.calibration.seeds[0], schedule, one_rate(rate), "range-test")
            for pair in pairs
            for rate in RANGE
        )

    def _run(
        self,
        pair: RankPair,
        seed: int,
        schedule: RunSchedule,
        rates: LearningRates | None,
        part: Part = "calibration",
    ) -> PlannedRun:
        layers = [layer.name for group in GROUPS for layer in self.inputs.partition.group(group)]
        data_seed = data_seed_of(self.config, seed)
        identity = run_id(
            model_id=self.inputs.fingerprint,
            data_hash=self.inputs.data.calibration_hash,
            recipe_hash=recipe_hash(self.config),
            r_me=pair.r_me,
            r_llm=pair.r_llm,
            seed=seed,
            data_seed=data_seed,
            adapted=content_hash(layers),
            horizon=schedule.horizon,
            objective=objective_identity(self.config),
            learning_rates=rates,
            part=None if part == "calibration" else part,
        )
        return PlannedRun(identity, pair, seed, schedule, data_seed, rates, part)


def data_seed_of(config: StudyConfig, seed: int) -> int:
    """Seed of the order in which a seed's runs see the samples: the spread over seeds holds that of the order.

    All pairs of a seed share one order. Seed 0 has the study's own, so that a study of one seed has no other.
    """
    return config.calibration.data_seed + seed


def calibration_pairs(config: StudyConfig) -> list[RankPair]:
    """Every pair of the calibration ranks."""
    return config.calibration.grid.pairs


def _count_parameters(partition: Partition, pair: tuple[int, int]) -> int:
    return trainable_parameters(partition, RankPair(*pair))


def calibration_schedules(inputs: Inputs) -> tuple[tuple[RunSchedule, ...], tuple[str, ...]]:
    """Schedules of the runs of a pair and seed, the longest first, and notes on the data.

    The model's weights are not read.

    Raises:
        ValueError: the dataset is smaller than the smallest size, or no power of two lies between it and the largest.
    """
    available = len(inputs.usable("train"))
    notes = [note for split in PARTS for note in _length_note(inputs, split)]
    smallest, largest = _smallest_and_largest(inputs.config, available)
    if inputs.config.calibration.runs == "per_size":
        sizes = _powers_of_two(smallest, largest)
        if sizes[0] < inputs.config.calibration.samples:
            notes.append(_largest_size_note(inputs.config, available, sizes[0]))
        several = tuple(_schedule_of_size(inputs.config, size) for size in sizes)
        return several, (*notes, *_one_size_note(inputs.config, several))
    if available < inputs.config.calibration.samples:
        notes.append(
            f"largest size capped by the dataset: {available} instead of {inputs.config.calibration.samples} samples"
        )
    horizon = largest // inputs.config.recipe.batch_size
    one = (RunSchedule(horizon, _checkpoints(_first_step(inputs.config), horizon)),)
    return one, (*notes, *_one_size_note(inputs.config, one))


def _one_size_note(config: StudyConfig, schedules: Sequence[RunSchedule]) -> tuple[str, ...]:
    """A law needs runs at several sizes, so this study would calibrate in vain."""
    looked_at = len(schedules) if schedules[0].size is not None else len(schedules[0].checkpoint_steps)
    if looked_at > 1:
        return ()
    return (
        f"{WARNING}runs are evaluated at one size alone, {schedules[0].horizon * config.recipe.batch_size} samples, so "
        "that neither law can be fitted: lower calibration.smallest_size "
        f"(now {config.calibration.smallest_size}), or raise calibration.samples (now {config.calibration.samples})",
    )


def _smallest_and_largest(config: StudyConfig, available: int) -> tuple[int, int]:
    smallest = max(config.calibration.smallest_size, config.recipe.batch_size)
    if available < smallest:
        raise ValueError(
            f"the training set has {available} usable samples, fewer than the smallest calibration size "
            f"{smallest}: add data, or lower calibration.smallest_size (now {config.calibration.smallest_size}) "
            f"or recipe.batch_size (now {config.recipe.batch_size})"
        )
    return smallest, min(available, config.calibration.samples)


def _powers_of_two(smallest: int, largest: int) -> list[int]:
    sizes = [1 << power for power in range((smallest - 1).bit_length(), largest.bit_length())]
    if not sizes:
        raise ValueError(
            "calibration.runs: per_size trains one run for each size 2^n, and there is no such size between the "
            f"smallest, {smallest}, and the largest, {largest}: lower calibration.smallest_size or recipe.batch_size, "
            "raise calibration.samples, add data, or take `runs: one`"
        )
    return sizes[::-1]


def _largest_size_note(config: StudyConfig, available: int, largest: int) -> str:
    wanted = config.calibration.samples
    cause = f"capped by the dataset of {available} samples" if available < wanted else "since sizes are powers of two"
    return f"largest size {largest} instead of {wanted} samples, {cause}"


def _schedule_of_size(config: StudyConfig, size: int) -> RunSchedule:
    horizon = size // config.recipe.batch_size
    first = min(_first_step(config), max(1, int(horizon * LOOKED_AT_FROM)))
    return RunSchedule(horizon, _checkpoints(first, horizon), size)


def _first_step(config: StudyConfig) -> int:
    return math.ceil(config.calibration.smallest_size / config.recipe.batch_size)


def _checkpoints(first: int, last: int) -> tuple[int, ...]:
    return geometric_steps(first, last, per_doubling=CHECKPOINTS_PER_DOUBLING)


def _length_note(inputs: Inputs, split: str) -> tuple[str, ...]:
    dropped, kept = inputs.dropped(split), len(inputs.usable(split))
    if not dropped:
        return ()
    share = dropped / (dropped + kept)
    limit = inputs.config.recipe.max_tokens
    note = f"{dropped} of {dropped + kept} {split} samples are longer than {limit} tokens and left out"
    if share <= _MUCH_DROPPED:
        return (note,)
    return (
        f"{WARNING}{note}, {share:.0%} of them: what is trained or tested is not the data given; raise "
        "recipe.max_tokens (`mars data check` shows the lengths), or remove them from the data if this is meant",
    )


def describe_plan(plan: CalibrationPlan) -> dict[str, Any]:
    """A plan as JSON values; steps and checkpoints of a run stand outside its schedule only where there is one."""
    schedules = [
        {
            "runs": sum(run.schedule == one for run in plan.runs),
            "size": one.size,
            "steps_per_run": one.horizon,
            "checkpoint_steps": list(one.checkpoint_steps),
        }
        for one in plan.schedules
    ]
    shared = ("steps_per_run", "checkpoint_steps") if len(schedules) == 1 else ()
    return {
        "runs": len(plan.runs),
        "pairs": sorted({run.pair for run in plan.runs}),
        "steps": plan.steps,
        **{name: schedules[0][name] for name in shared},
        "schedules": schedules,
        "notes": list(plan.notes),
    }
