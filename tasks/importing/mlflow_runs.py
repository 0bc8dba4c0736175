"""Read rank runs from an MLflow experiment: ranks from parameters, losses from a metric's history."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import Experiment, Metric, Run
from mlflow.exceptions import MlflowException

from mars_core.importing.cells import LARGEST
from tasks.running.addresses import without_password

PAGE = 500
# A study of ours tags every run with its identity: a run that was trained again replaces the older one.
OWN_RUN_ID, OWN_REVISION = "mars.run_id", "mars.revision"
FROM_PARAMETERS = (
    "r_me",
    "r_llm",
    "seed",
    "batch_size",
    "trainable_parameters",
    "peak_lr",
    "peak_lr_me",
    "peak_lr_llm",
)
# Where the parameters of ours are called otherwise.
OWN_NAMES = {"batch_size": "recipe.batch_size"}


@dataclass(frozen=True, eq=False)
class MlflowRuns:
    """Raw rows, what each row is called in messages, and what was left out."""

    rows: pd.DataFrame
    where: tuple[str, ...]
    experiment: str
    notes: tuple[str, ...]


def read_mlflow_runs(
    uri: str, experiment: str | None, names: Mapping[str, str], *, metric: str = "val_loss", filter_string: str = ""
) -> MlflowRuns:
    """Read every finished run of an experiment that has both ranks and the metric.

    Args:
        uri: tracking URI.
        experiment: its name; None where the store has only one with runs.
        names: our name -> name of the parameter (of lr: metric), where it is called otherwise.
        metric: name of the validation loss, in nats per answer token, logged by optimizer step.
        filter_string: MLflow's search filter, such as `tags.phase = 'calibration'`.

    Raises:
        ValueError: there is no such store or experiment, no usable run, or runs of several revisions of a study.
        RuntimeError: the server does not answer.
    """
    _require_store(uri)
    with _errors_in_one_line(uri):
        client = mlflow.MlflowClient(uri)
        found = _experiment(client, experiment)
        runs = list(_search(client, found, filter_string))
        ranked, notes = _with_ranks(runs, names)
        ranked, replaced = _newest_of_each(ranked)
        _refuse_several_revisions(ranked)
        histories = {run.info.run_id: client.get_metric_history(run.info.run_id, metric) for run in ranked}
        rate = names.get("lr", "lr")
        rates = {run.info.run_id: client.get_metric_history(run.info.run_id, rate) for run in ranked}
    kept, unusable = _with_losses(ranked, histories, metric)
    notes = [*notes, *replaced, *unusable]
    if not kept:
        raise ValueError(
            f"experiment {found.name!r} has no finished run with parameters {names.get('r_me', 'r_me')!r} and "
            f"{names.get('r_llm', 'r_llm')!r} and metric {metric!r} among {len(runs)} runs: name them with --r-me, "
            f"--r-llm and --loss{_hint(runs)}" + "".join(f"\n  {note}" for note in notes)
        )
    rows, where = _rows(kept, histories, rates, names)
    return MlflowRuns(rows, where, found.name, (*notes, *_differing(kept, names)))


def _require_store(uri: str) -> None:
    """MLflow would make a database that is not there."""
    path = uri.removeprefix("sqlite:///")
    if path != uri and not Path(path).is_file():
        raise ValueError(f"there is no database {path}: give the tracking URI that the runs were logged to")


@contextlib.contextmanager
def _errors_in_one_line(uri: str) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        uri, message = without_password(uri), without_password(error.message)
        if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            raise ValueError(f"MLflow at {uri} refuses: {message}") from error
        raise RuntimeError(f"MLflow at {uri} cannot be read: {message}") from error


def _experiment(client: mlflow.MlflowClient, name: str | None) -> Experiment:
    experiments = client.search_experiments()
    known = [experiment.name for experiment in experiments]
    if name is not None:
        found = client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise ValueError(f"there is no experiment {name!r}; the store has {known}")
        return found
    with_runs = [e for e in experiments if client.search_runs([e.experiment_id], max_results=1)]
    if len(with_runs) != 1:
        raise ValueError(
            f"the store has {len(with_runs)} experiments with runs, name one with --experiment: "
            f"{[e.name for e in with_runs] or known}"
        )
    return with_runs[0]


def _search(client: mlflow.MlflowClient, experiment: Experiment, filter_string: str) -> Iterator[Run]:
    """Every active run, oldest first, page by page."""
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment.experiment_id],
            filter_string,
            max_results=PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def _with_ranks(runs: Sequence[Run], names: Mapping[str, str]) -> tuple[list[Run], list[str]]:
    """Finished runs with at least one rank parameter: parents and other runs of the experiment have none."""
    keys = [names.get(name, name) for name in ("r_me", "r_llm")]
    ranked = [run for run in runs if any(key in run.data.params for key in keys)]
    notes = []
    if len(ranked) < len(runs):
        notes.append(f"{len(runs) - len(ranked)} runs without {' or '.join(keys)} are left out")
    notes += [f"{_name(run)} is {run.info.status} and left out" for run in ranked if run.info.status != "FINISHED"]
    return [run for run in ranked if run.info.status == "FINISHED"], notes


def _newest_of_each(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    newest = {run.data.tags.get(OWN_RUN_ID, run.info.run_id): run for run in runs}  # oldest first: the last one stays
    dropped = len(runs) - len(newest)
    return list(newest.values()), [f"{dropped} runs that were trained again later are left out"] if dropped else []


def _refuse_several_revisions(runs: Sequence[Run]) -> None:
    revisions = sorted({run.data.tags[OWN_REVISION] for run in runs if OWN_REVISION in run.data.tags})
    if len(revisions) > 1:
        raise ValueError(
            f"the runs belong to revisions {', '.join(revisions)} of a study, made with other models, data or recipes: "
            f"choose one with --filter \"tags.`{OWN_REVISION}` = '{revisions[-1]}'\""
        )


def _with_losses(
    runs: Sequence[Run], histories: Mapping[str, Sequence[Metric]], metric: str
) -> tuple[list[Run], list[str]]:
    """Runs whose loss was logged and stayed finite, and a note on each other."""
    kept, notes = [], []
    for run in runs:
        history = histories[run.info.run_id]
        broken = sorted(entry.step for entry in history if not abs(entry.value) < LARGEST)
        if not history:
            notes.append(f"{_name(run)} has no metric {metric!r} and is left out")
        elif broken:
            notes.append(f"{_name(run)} diverged at step {broken[0]} and is left out of the laws")
        else:
            kept.append(run)
    return kept, notes


def _rows(
    runs: Sequence[Run],
    histories: Mapping[str, Sequence[Metric]],
    rates: Mapping[str, Sequence[Metric]],
    names: Mapping[str, str],
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """One row per run and step, with the learning rate where it was logged at that step."""
    seeds = _seeds(runs, names)
    rows, where = [], []
    for run in runs:
        shared: dict[str, Any] = {name: _parameter(run, name, names) for name in FROM_PARAMETERS}
        shared |= {"run_id": run.data.tags.get(OWN_RUN_ID, run.info.run_id), "seed": seeds[run.info.run_id]}
        rate = _last_of_each_step(rates[run.info.run_id])
        for step, loss in _last_of_each_step(histories[run.info.run_id]).items():
            rows.append(shared | {"step": step, "loss": loss, "lr": rate.get(step)})
            where.append(_name(run))
    table = pd.DataFrame(rows)
    return table.dropna(axis="columns", how="all"), tuple(where)


def _parameter(run: Run, name: str, names: Mapping[str, str]) -> str | None:
    for key in (names.get(name, name), OWN_NAMES.get(name)):
        if key in run.data.params:
            return str(run.data.params[key])
    return None


def _seeds(runs: Sequence[Run], names: Mapping[str, str]) -> dict[str, Any]:
    """The seed of each run by its id; runs of a pair without one are numbered from the oldest."""
    counts: dict[tuple[str | None, str | None], int] = {}
    seeds: dict[str, Any] = {}
    for run in runs:
        pair = (_parameter(run, "r_me", names), _parameter(run, "r_llm", names))
        seeds[run.info.run_id] = _parameter(run, "seed", names) or str(counts.get(pair, 0))
        counts[pair] = counts.get(pair, 0) + 1
    return seeds


def _last_of_each_step(history: Sequence[Metric]) -> dict[int, float]:
    """The value logged last at each step: a run that was resumed logs some steps again."""
    ordered = sorted(history, key=lambda entry: (entry.step, entry.timestamp))
    return {entry.step: entry.value for entry in ordered}


def _differing(runs: Sequence[Run], names: Mapping[str, str]) -> list[str]:
    """A note on parameters that differ between runs of one pair and seed or from pair to pair, beside the ranks."""
    expected = {names.get(name, OWN_NAMES.get(name, name)) for name in FROM_PARAMETERS} | set(FROM_PARAMETERS)
    shared = set.intersection(*(set(run.data.params) for run in runs)) - expected
    differ = sorted(key for key in shared if len({run.data.params[key] for run in runs}) > 1)
    if not differ:
        return []
    listed = ", ".join(differ[:8]) + (f" and {len(differ) - 8} more" if len(differ) > 8 else "")
    return [f"the runs also differ in {listed}: the laws take them for one recipe, --filter can part them"]


def _hint(runs: Sequence[Run]) -> str:
    """What the first run with parameters has, for a caller who must name them."""
    run = next((run for run in runs if run.data.params), None)
    if run is None:
        return ""
    return f". {_name(run)} has parameters {sorted(run.data.params)[:30]} and metrics {sorted(run.data.metrics)[:30]}"


def _name(run: Run) -> str:
    return f"run {run.info.run_name} ({run.info.run_id[:8]})"
