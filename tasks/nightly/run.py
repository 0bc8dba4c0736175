"""What a night looks at and keeps: whether anything changed, what drifted, and the report.

STUDY/night.json                  what the last completed night saw
STUDY/revisions/001/drift.json    the night's findings about this revision, drift.md for people
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from mars_core import __version__
from mars_core.drift import (
    ChoiceDrift,
    DataDrift,
    LawSummary,
    Night,
    compare_choices,
    compare_data,
    compare_laws,
    night_as_markdown,
)
from mars_core.models.lora import trainable_parameters
from mars_core.ranks import RankPair
from mars_core.records import json_safe
from mars_core.search.constraints import objection_of
from tasks.choice.fit import read_laws
from tasks.choice.search import METHOD, read_choice
from tasks.inputs.opened import Inputs, open_inputs
from tasks.nightly.champion import Champion, champion_hash, read_champion, summaries
from tasks.running.retrying import IO_RETRIES, REQUESTS
from tasks.settings.search import BESIDE_THE_CHOICE
from tasks.settings.study import StudyConfig
from tasks.storage.files import read_json, replacing, write_json
from tasks.storage.folder import Revision, is_finished, read_manifest, revisions
from tasks.storage.location import working_folder
from tasks.storage.transfer import NIGHT_FILE, publish_files, publish_newest, pull
from tasks.study.opened import Study
from tasks.study.revision import changes_since, differences, identity
from tasks.study.snapshot import read_snapshot
from tasks.tracking import runs as tracking

CYCLE = ("calibrate", "fit", "search")


@dataclass(frozen=True)
class Seen:
    """What a night finds before it does anything.

    inputs: everything that decides the choice: identity of model, data and recipe, settings, version of the code.
    changes: what differs from the last completed night. opens_revision: whether results would not mix with the
    newest revision's. unchanged: whether there is nothing to calibrate, fit or choose.
    """

    inputs: dict[str, Any]
    changes: tuple[str, ...]
    opens_revision: bool
    unchanged: bool


@task(name="look-for-changes", cache_policy=NO_CACHE, persist_result=False, **IO_RETRIES)
def look(config: StudyConfig) -> Seen:
    """Hash data, model and recipe as they are now, and compare with the last night; loads no model, decodes no image.

    Every byte of the data files is read: sizes and times of files prove nothing.
    """
    pull(config.study)
    study, current = working_folder(config.study), identity(open_inputs(config))
    known = revisions(study)
    inputs = {
        "identity": current,
        "settings": _settings(config),
        "code_version": __version__,
        "method": METHOD,
    }
    last = _last_night(study)
    new = bool(known) and bool(changes_since(known[-1], current))
    unchanged = bool(known) and not new and last == inputs and stands(known[-1])
    return Seen(inputs, _changes(last, inputs, known, current), new, unchanged)


def stands(revision: Revision) -> bool:
    """Whether calibration, laws and choice of a revision are finished and lie as they were left."""
    return all(_finished(revision, stage) for stage in CYCLE)


def _finished(revision: Revision, stage: str) -> bool:
    manifest = read_manifest(revision, stage)
    return manifest is not None and is_finished(revision, stage, manifest.inputs)


def _settings(config: StudyConfig) -> dict[str, Any]:
    settings = config.model_dump(mode="json", include={"calibration", "fit", "search"})
    del settings["calibration"]["parallel"]  # changes how fast, not what
    for name in BESIDE_THE_CHOICE:
        del settings["search"][name]
    settings["final"] = {"epochs": config.final.epochs}  # it decides the size that ranks are chosen for
    return settings


def _changes(
    last: dict[str, Any] | None, inputs: dict[str, Any], known: Sequence[Revision], current: dict[str, Any]
) -> tuple[str, ...]:
    if last is not None:
        return tuple(line.removeprefix("identity.") for line in differences(last, inputs))
    return tuple(changes_since(known[-1], current)) if known else ("this study has not been calibrated before",)


def _night_path(study: Path) -> Path:
    return study / NIGHT_FILE


def _last_night(study: Path) -> dict[str, Any] | None:
    path = _night_path(study)
    return read_json(path)["inputs"] if path.is_file() else None


def stored_runs(revision: Revision) -> set[str]:
    """Ids of the calibration runs that a revision holds."""
    return {path.stem for path in revision.path("calibration").glob("*.json")}


def reused_runs(revision: Revision, runs: set[str]) -> set[str]:
    """Those of the runs that were taken over from an older revision."""
    return {run for run in runs if "adopted_from" in read_json(revision.path("calibration", f"{run}.json"))}


@task(name="compare-with-standing-choice", cache_policy=NO_CACHE, persist_result=False, **IO_RETRIES)
def find_drift(study: Study, seen: Seen, new_runs: set[str]) -> Night:
    """Compare the revision's data, laws and choice with the champion's, and keep the findings.

    With them the night's look is kept, so that the next night need not calibrate, fit or choose again.
    """
    champion = read_champion(study.folder)
    reused = reused_runs(study.revision, new_runs)
    older = _older_state(study.revision, champion)
    night = Night(
        study=study.folder.name,
        revision=study.revision.number,
        changes=seen.changes,
        trained=len(new_runs - reused),
        adopted=len(reused),
        compared_with=older.name,
        data=_compare_data(older.revision, study.revision),
        laws=compare_laws(older.laws, summaries(read_laws(study.revision))),
        choice=_compare_choice(study, champion),
    )
    write_json(_findings_path(study.revision), json_safe(night.to_json() | {"standing": champion_hash(champion)}))
    publish_files(study.config.study, [_findings_path(study.revision)])
    write_json(_night_path(study.folder), {"inputs": seen.inputs, "revision": study.revision.number})
    publish_newest(study.config.study, NIGHT_FILE)
    return night


def last_findings(revision: Revision) -> ChoiceDrift | None:
    """What was found about the revision's choice, None where it was compared with another champion or none."""
    path = _findings_path(revision)
    if not path.is_file():
        return None
    stored = read_json(path)
    same = stored["standing"] == champion_hash(read_champion(revision.study))
    return ChoiceDrift.from_json(stored["choice"]) if same else None


def _compare_choice(study: Study, champion: Champion | None) -> ChoiceDrift:
    return compare_choices(
        champion.pair if champion else None,
        read_choice(study.revision),
        objection_to_standing=_objection_to(study.inputs, champion) if champion else None,
    )


def _objection_to(inputs: Inputs, champion: Champion) -> str | None:
    """Why the champion's adapter cannot stay, whatever its loss."""
    if champion.model_fingerprint != inputs.fingerprint:
        return "The base model changed, and the champion's adapter belongs to the old one"
    constraints = inputs.config.search.as_constraints()
    if not constraints:
        return None
    partition = inputs.partition
    objection = objection_of(champion.pair, constraints, lambda pair: trainable_parameters(partition, RankPair(*pair)))
    return None if objection is None else f"The champion's pair {champion.pair} is not allowed any more: {objection}"


@dataclass(frozen=True)
class _Older:
    """What drift is measured against: its name, its laws, and the revision whose data it had."""

    name: str | None
    laws: Mapping[str, LawSummary | None]
    revision: Revision | None


def _older_state(revision: Revision, champion: Champion | None) -> _Older:
    """The champion, else the revision before, else nothing."""
    if champion is not None:
        made_in = Revision(revision.study, champion.revision)
        return _Older(f"the champion (revision {champion.revision})", champion.laws, made_in)
    before = [known for known in revisions(revision.study) if known.number < revision.number and stands(known)]
    if not before:
        return _Older(None, {}, None)
    return _Older(f"revision {before[-1].number}", summaries(read_laws(before[-1])), before[-1])


def _compare_data(before: Revision | None, revision: Revision) -> DataDrift | None:
    old, new = read_snapshot(before) if before else None, read_snapshot(revision)
    return compare_data(old, new) if old and new else None


@task(name="publish-night", cache_policy=NO_CACHE, persist_result=False, **REQUESTS)
def publish_night(study: Study, night: Night, done: str, parent: str) -> str:
    """Write the night's report, attach it to the revision's MLflow run and show it in Prefect; returns its path."""
    text = night_as_markdown(night, done)
    path = study.revision.path("drift.md")
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    publish_files(study.config.study, [path])
    for file in (path, _findings_path(study.revision)):
        tracking.log_file(parent, file)
    show_night(text)
    return str(path)


def show_night(text: str) -> None:
    """Show a night's report in the Prefect UI."""
    create_markdown_artifact(text, key="mars-nightly", description="What drifted, and what was done about it")


def _findings_path(revision: Revision) -> Path:
    return revision.path("drift.json")
