"""Choose the rank pair from the calibration runs and the fitted laws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core import __version__
from mars_core.metrics.identity import content_hash
from mars_core.models.lora import trainable_parameters
from mars_core.ranks import RankGrid, RankPair
from mars_core.search import Choice, Diverged, Question, choose_from, read_points
from mars_core.search.objective import objective_named
from mars_core.search.run_signs import run_notes, run_warnings
from tasks.calibration.diverged import collect_metrics, divergence
from tasks.calibration.stage import CALIBRATE
from tasks.choice.fit import FIT, read_laws, target_note, target_size
from tasks.inputs.opened import Inputs
from tasks.running.retrying import IO_RETRIES
from tasks.settings.search import BESIDE_THE_CHOICE
from tasks.storage.files import read_json, write_json
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.stage import Stage

METHOD = "posterior 2"  # how a pair is chosen: a choice made in another way is made again


def _inputs(study: Study, measured: str) -> str:
    """What decides the choice; measured: hash of metrics and laws."""
    settings = {
        "search": study.config.search.model_dump(mode="json", exclude=set(BESIDE_THE_CHOICE)),
        "ranks": _ranks(study.config.available_ranks),
        "target_size": target_size(study.inputs),
        "code_version": __version__,
        "method": METHOD,
    }
    return content_hash([measured, settings])


def _ranks(grid: RankGrid) -> list[list[int]] | list[int]:
    # One list where both modules have the same, as in the hashes of studies made before they could differ.
    return list(grid.me) if grid.me == grid.llm else [list(grid.me), list(grid.llm)]


@task(name="choose-ranks", cache_policy=NO_CACHE, persist_result=False, **IO_RETRIES)
def choose_ranks(study: Study) -> str:
    """Choose from the runs and their laws, and store the choice with its reasons; returns its path."""
    found = divergence(study)
    question = _question(study.inputs, Diverged(found.pairs))
    metrics = collect_metrics(study, found)
    points = read_points(metrics, question.objective)
    annotated = replace(points, notes=(*points.notes, *run_notes(metrics), target_note(study.inputs)))
    choice = choose_from(read_laws(study.revision), annotated, question)
    choice = replace(choice, warnings=(*choice.warnings, *run_warnings(metrics)))
    write_json(choice_path(study.revision), choice.to_json())
    return str(choice_path(study.revision))


def _question(inputs: Inputs, diverged: Diverged) -> Question:
    """The search with a study's settings and its model's parameter counts."""
    partition = inputs.partition
    return Question(
        target_samples=target_size(inputs),
        trainable_parameters=lambda pair: trainable_parameters(partition, RankPair(*pair)),
        reference=inputs.config.calibration.reference,
        ranks_me=inputs.config.available_ranks.me,
        ranks_llm=inputs.config.available_ranks.llm,
        margin=inputs.config.search.margin,
        rule=inputs.config.search.law,
        constraints=(*inputs.config.search.as_constraints(), diverged),
        objective=objective_named(inputs.config.search.objective),
        learning_rates=inputs.config.recipe.as_recipe().learning_rates,
    )


def choice_path(revision: Revision) -> Path:
    """Where the choice lies."""
    return revision.path("choice.json")


SEARCH = Stage(
    "search",
    reads=lambda _: (CALIBRATE, FIT),
    inputs=_inputs,
    outputs=lambda study: (choice_path(study.revision),),
)


def read_choice(revision: Revision) -> Choice:
    """The stored choice."""
    return Choice.from_json(read_json(choice_path(revision)))


def chosen_pair(revision: Revision) -> RankPair:
    """The chosen rank pair."""
    return RankPair(*read_choice(revision).pair)
