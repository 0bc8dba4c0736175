"""Runs that diverged: the pairs that they rule out, and the learning rates at which other pairs are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from mars_core.ranks import Pair
from mars_core.rates import LearningRates
from tasks.calibration.stored import metrics_path, read_metrics, summary_path, with_peaks
from tasks.storage.files import read_json
from tasks.study.opened import Study
from tasks.study.plan import PlannedRun

Cell = tuple[Pair, LearningRates | None]


@dataclass(frozen=True)
class Divergence:
    """What diverged runs mean.

    steps: at which each of them diverged. pairs: ruled out, since they diverged at every learning rate, each with the
    words for its runs; a pair of several seeds is among them with one, since what its other seeds reached is what it
    reaches where it holds. left_out: runs that no law reads: diverged ones, and of a pair that holds at other learning
    rates all runs at those where it did not.
    """

    steps: Mapping[PlannedRun, int]
    pairs: Mapping[Pair, str]
    left_out: frozenset[PlannedRun]

    @property
    def warnings(self) -> list[str]:
        """What may change the choice: runs of pairs that are ruled out."""
        return [_note(run, step) for run, step in self.steps.items() if run.pair in self.pairs]

    @property
    def notes(self) -> list[str]:
        """A sentence on each diverged run."""
        return [_note(run, step) for run, step in self.steps.items()]


def divergence(study: Study, runs: Sequence[PlannedRun] | None = None) -> Divergence:
    """What diverged among the planned runs (or some of them), all of which must be stored."""
    runs = study.plan.runs if runs is None else runs
    found = {run: read_json(summary_path(study.revision, run.run_id))["diverged_at"] for run in runs}
    steps = {run: int(step) for run, step in found.items() if step is not None}
    lost = {_cell(run) for run in steps}
    holding = {run.pair for run in runs if _cell(run) not in lost}
    words: dict[Pair, list[str]] = {}
    for run, step in steps.items():
        if run.pair not in holding:
            words.setdefault(run.pair, []).append(_words(run, step))
    beside = {run for run in runs if _cell(run) in lost and run.pair in holding}
    pairs = {pair: ", ".join(said) for pair, said in words.items()}
    return Divergence(steps, pairs, frozenset(beside | steps.keys()))


def collect_metrics(study: Study, found: Divergence) -> pd.DataFrame:
    """Metrics of the planned runs that laws and choice read.

    Raises:
        ValueError: every run diverged.
    """
    kept = [run for run in study.plan.runs if run not in found.left_out]
    if not kept:
        raise ValueError(
            "every calibration run diverged: lower recipe.learning_rate (calibration.learning_rates where rates are "
            "given there) and open a new revision"
        )
    return metrics_of(study, kept)


def metrics_of(study: Study, runs: Sequence[PlannedRun]) -> pd.DataFrame:
    """Metrics of stored runs, at least one."""
    frames = [read_metrics(metrics_path(study.revision, run.run_id)) for run in runs]
    return with_peaks(pd.concat(frames, ignore_index=True), study.config.recipe.as_recipe().learning_rates)


def _cell(run: PlannedRun) -> Cell:
    return run.pair, run.learning_rates


def _words(run: PlannedRun, step: int) -> str:
    size = "" if run.schedule.size is None else f" and size {run.schedule.size}"
    rate = "" if run.learning_rates is None else f" and learning rate {run.learning_rates}"
    return f"seed {run.seed}{size}{rate} at step {step}"


def _note(run: PlannedRun, step: int) -> str:
    return f"run {run.name} diverged at step {step} and is left out of the laws"
