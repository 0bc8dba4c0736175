"""Open a study's revision, and refuse one that was made with another model, data or recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mars_core.metrics.identity import content_hash
from tasks.inputs.opened import Inputs
from tasks.settings.study import StudyConfig, write_study
from tasks.storage.files import read_json, write_json
from tasks.storage.folder import Revision, revisions
from tasks.storage.location import working_folder
from tasks.storage.transfer import STUDY_FILE, publish_files, publish_newest, pull
from tasks.study.snapshot import snapshot_path, write_snapshot


def identity(inputs: Inputs) -> dict[str, Any]:
    """What a revision is made with: if any of it changes, results must not mix."""
    return {
        "model": inputs.config.model,
        "model_fingerprint": inputs.fingerprint,
        "family": inputs.config.family and inputs.config.family.model_dump(mode="json"),
        "four_bit": inputs.config.loading.four_bit or None,
        "data_hash": inputs.data.data_hash,
        "recipe": inputs.config.recipe.identity(),
        "recipe_hash": recipe_hash(inputs.config),
    }


def recipe_hash(config: StudyConfig) -> str:
    """Hash of the settings shared by calibration and the final run."""
    return content_hash(config.recipe.identity())


def open_revision(inputs: Inputs, *, new: bool) -> Revision:
    """Return the newest revision of a study, or a new one where there is none or `new` asks for it.

    Raises:
        ValueError: the newest revision was made with another model, data or recipe.
    """
    pull(inputs.config.study)
    study = working_folder(inputs.config.study)
    known = revisions(study)
    current = identity(inputs)
    if known and not new:
        _refuse_other(known[-1], current)
        revision = known[-1]
    elif known and not _differing(_stored(known[-1]), current):
        raise ValueError(
            f"{study} already has revision {known[-1].number} with this model, data and recipe: "
            "run without --new-revision to go on with it"
        )
    else:
        revision = Revision(study, known[-1].number + 1 if known else 1)
        write_json(revision.path("splits.json"), _splits(inputs))
        write_snapshot(revision, inputs)
        write_json(revision.path("revision.json"), current)
    records = [revision.path("splits.json"), snapshot_path(revision), revision.path("revision.json")]
    publish_files(inputs.config.study, [path for path in records if path.is_file()])
    write_study(inputs.config, study / STUDY_FILE)
    publish_newest(inputs.config.study, STUDY_FILE)
    return revision


def _splits(inputs: Inputs) -> dict[str, Any]:
    splits = inputs.data.splits
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    ids = {name: [sample.id for sample in samples] for name, samples in parts.items()}
    return {"data_hash": inputs.data.data_hash, "notes": list(splits.notes), **ids}


def current_revision(config: StudyConfig) -> Revision:
    """The newest revision of a study, with what other machines have published of it.

    Raises:
        ValueError: the study holds none.
    """
    pull(config.study)
    return newest_revision(working_folder(config.study))


def newest_revision(study: Path) -> Revision:
    """The newest revision of a study folder.

    Raises:
        ValueError: the folder holds none.
    """
    known = revisions(study)
    if not known:
        raise ValueError(f"{study} holds no revision yet: run `mars calibrate` or `mars run` first")
    return known[-1]


def _stored(revision: Revision) -> dict[str, Any]:
    stored: dict[str, Any] = read_json(revision.path("revision.json"))
    return stored


def changes_since(revision: Revision, current: dict[str, Any]) -> list[str]:
    """What differs between the identity that a revision was made with and a present one, in words.

    A base model that lies elsewhere by now is the same one where its content is.
    """
    stored = _stored(revision)
    if stored.get("model_fingerprint") == current["model_fingerprint"]:
        stored = stored | {"model": current["model"]}
    return differences(stored, current)


def differences(stored: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """What differs between two nested settings, in words."""
    return [
        f"{name} was {was!r} and is {now!r}" for name, was, now in _differing(stored, current) if name != "recipe_hash"
    ]


def _refuse_other(revision: Revision, current: dict[str, Any]) -> None:
    differences = changes_since(revision, current)
    if differences:
        raise ValueError(
            f"study folder {revision.study} (revision {revision.number}) was made with other settings: "
            f"{'; '.join(differences)}. Results of both must not mix: add --new-revision to open revision "
            f"{revision.number + 1} in the same folder, or give another `study` folder"
        )


def _differing(stored: dict[str, Any], current: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    found = []
    for key in sorted(stored.keys() | current.keys()):
        was, now = stored.get(key), current.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += _differing(was, now, f"{prefix}{key}.")
        elif was != now:
            found.append((prefix + key, was, now))
    return found
