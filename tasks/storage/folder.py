"""The study folder: where things lie in it, and manifests that say which stages are done.

STUDY/study.yaml                          the configuration as resolved
STUDY/mlflow.db, STUDY/mlartifacts/       MLflow's embedded store, never in a remote study folder
STUDY/standing.json                       the accepted final run
STUDY/night.json                          what the last completed night saw
STUDY/revisions/001/                      one calibration-and-choice cycle
    manifests/STAGE.json                  inputs' hash and outputs' hashes of a finished stage
    splits.json, data.json                which samples train, validate and test; their digests
    learning_rates.json                   automatic learning rates, as far as they are decided
    calibration/RUN_ID.parquet            checkpoint metrics, one file per run; those of the range test in range-test/
    laws.json, choice.json                fitted laws, the choice with its reasons
    final/PAIR/                           adapter/ with its model card, checkpoints/, training.json of each final run;
                                          PAIR-lrRATE where its learning rate is not the recipe's
    standing/PAIR/                        the accepted final run, once another run of its pair took final/PAIR
    final/NAME/, comparison.json          baselines, and the table they are in
    evaluation.json                       test scores before and after
    report.html, figures/
    drift.json, drift.md                  what a night found
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mars_core.metrics.identity import content_hash
from mars_core.records import Record
from tasks.running.progress import show_message
from tasks.storage.files import file_hash, read_json, write_json


@dataclass(frozen=True)
class Revision:
    """One revision's folder within a study folder."""

    study: Path
    number: int

    @property
    def folder(self) -> Path:
        """The revision's folder."""
        return self.study / "revisions" / f"{self.number:03d}"

    def path(self, *parts: str) -> Path:
        """A path within the revision; refuses to leave it."""
        path = self.folder.joinpath(*parts)
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{'/'.join(parts)} lies outside the revision folder {self.folder}")
        return path

    def manifest(self, stage: str) -> Path:
        """Where a stage's manifest lies."""
        return self.path("manifests", f"{stage}.json")


def revisions(study: Path) -> list[Revision]:
    """Revisions of a study folder, oldest first; one that was never opened to the end does not count."""
    found = (study / "revisions").glob("*/revision.json")
    numbers = sorted(int(path.parent.name) for path in found if path.parent.name.isdecimal())
    return [Revision(study, number) for number in numbers]


@dataclass(frozen=True)
class Manifest(Record):
    """That a stage has finished. inputs: hash of its inputs. outputs: hash of each file by its path in the revision.

    details: what else is recorded, such as cost.
    """

    stage: str
    inputs: str
    outputs: Mapping[str, str | None]
    details: Mapping[str, Any] = field(default_factory=dict)


def read_manifest(revision: Revision, stage: str) -> Manifest | None:
    """A stage's manifest, None where it has not finished."""
    path = revision.manifest(stage)
    return Manifest.from_json(read_json(path)) if path.is_file() else None


def is_finished(revision: Revision, stage: str, inputs: str) -> bool:
    """Whether a stage has finished with these inputs and its outputs are all still as it left them.

    The user is told of a manifest that is damaged, and which output has changed: the stage has to run again.
    """
    try:
        manifest = read_manifest(revision, stage)
    except ValueError as error:
        show_message(f"{stage}: {revision.manifest(stage)} is damaged, so the stage has to run again ({error})")
        return False
    if manifest is None or manifest.inputs != inputs:
        return False
    changed = next(
        (name for name, digest in manifest.outputs.items() if file_hash(revision.path(name)) != digest), None
    )
    if changed is not None:
        there = "has changed since" if revision.path(changed).exists() else "is gone"
        show_message(f"{stage}: {revision.path(changed)} {there}, so the stage has to run again")
    return changed is None


def finish(revision: Revision, stage: str, inputs: str, outputs: Iterable[Path], details: Mapping[str, Any]) -> None:
    """Record that a stage has finished: its inputs' hash, its outputs' hashes, and details such as cost."""
    hashes = {str(path.relative_to(revision.folder)): file_hash(path) for path in _files(outputs)}
    write_json(revision.manifest(stage), Manifest(stage, inputs, hashes, details).to_json())


def outputs_hash(revision: Revision, *stages: str) -> str:
    """Hash of what some finished stages wrote: the input of a stage that reads it.

    Raises:
        ValueError: one of the stages has not finished.
    """
    found = []
    for stage in stages:
        manifest = read_manifest(revision, stage)
        if manifest is None:
            raise ValueError(
                f"stage {stage!r} has not finished in {revision.folder}: run `mars {stage.partition('-')[0]}` first"
            )
        found.append(dict(manifest.outputs))
    return content_hash(found)


def stage_details(revision: Revision, stage: str) -> Mapping[str, Any]:
    """Details that a finished stage recorded."""
    return Manifest.from_json(read_json(revision.manifest(stage))).details


def _files(outputs: Iterable[Path]) -> Iterator[Path]:
    for path in outputs:
        if path.is_dir():
            yield from sorted(child for child in path.rglob("*") if child.is_file())
        else:
            yield path
