"""The study's champion, STUDY/standing.json: the accepted final run. Only accepting another one changes it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peft import PeftModel
from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core.data.dataset import EncodedDataset
from mars_core.data.records import Sample
from mars_core.drift import Acceptance, Forgotten, LawSummary, ValidationScore, judge_final, judge_forgetting
from mars_core.evaluation.scores import evaluate
from mars_core.metrics.identity import content_hash
from mars_core.models.lora import remove_adapters
from mars_core.records import Record
from mars_core.search.fitted_laws import FittedLaws
from tasks.choice.fit import laws_path, read_laws
from tasks.choice.search import choice_path, read_choice
from tasks.final.arm import Arm
from tasks.final.evaluate import evaluation_path, read_evaluation
from tasks.final.forgetting import forgetting_of
from tasks.final.pair import final_folder
from tasks.final.record import read_final
from tasks.inputs.data import scored_batches
from tasks.inputs.opened import Inputs
from tasks.running.progress import show_message
from tasks.running.retrying import IO_RETRIES, SENDING
from tasks.storage.files import read_json, replacing_folder, write_json
from tasks.storage.folder import Revision, read_manifest
from tasks.storage.location import is_remote
from tasks.storage.transfer import STANDING_FILE, publish_files, publish_newest
from tasks.study.opened import Study
from tasks.study.revision import recipe_hash
from tasks.study.snapshot import read_snapshot
from tasks.tracking import runs as tracking
from tasks.tracking.outage import UNTRACKED
from tasks.tracking.registry import model_name, move_champion, register_adapter

# Fewer samples that the champion's adapter has not seen say too little, unless they are the whole validation set.
FEWEST_UNSEEN = 50
NOT_TRACKED_HERE = (
    "its MLflow run is in the store of the machine that trained it, so it cannot be registered here: run `mars accept` "
    "there, and set MLFLOW_TRACKING_URI to a server that all machines share"
)


@dataclass(frozen=True)
class Champion(Record):
    """The accepted final run and what it was made with.

    `validation_hash`: of the samples that `validation_loss` was measured on, and of how. `laws`: coefficients and
    intervals at the time (`performance`, `me`, `llm`). `evaluation`: its test scores, for people; nothing is decided
    by them. `registered_model`, `model_version`: it in MLflow's registry; no version where MLflow has no run of it.
    `mlflow_run_id`: its run there, or what else tells it from other final runs. `adapter`: its folder in the study's.
    """

    revision: int
    pair: tuple[int, int]
    adapter: str
    registered_model: str
    model_version: str
    mlflow_run_id: str
    validation_loss: float
    validation_hash: str
    model_fingerprint: str
    recipe_hash: str
    data_hash: str
    laws: Mapping[str, LawSummary | None]
    choice_reason: str
    accepted_because: str
    accepted_at: str
    evaluation: Mapping[str, Any] | None


def champion_path(study: Path) -> Path:
    """Where the champion lies."""
    return study / STANDING_FILE


def read_champion(study: Path) -> Champion | None:
    """The champion, None where no final run has been accepted."""
    path = champion_path(study)
    return Champion.from_json(read_json(path)) if path.is_file() else None


def champion_hash(champion: Champion | None) -> str:
    """Hash of the champion: what a later decision was made against. Where its files lie is no part of it."""
    if champion is None:
        return content_hash(None)
    return content_hash({name: value for name, value in champion.to_json().items() if name != "adapter"})


@task(name="keep-standing-adapter", cache_policy=NO_CACHE, persist_result=False, **SENDING)
def keep_champion_adapter(study: Study, arm: Arm, inputs: str) -> None:
    """Set the champion's adapter aside if a final run of the same pair with other inputs is about to take its folder.

    Copied first, then named by the champion: at no time does that name another run's adapter.

    inputs: hash of what decides the run to come. With the same, it makes the same adapter again.
    """
    folder, kept = final_folder(study.revision, arm), kept_folder(study.revision, arm)
    champion = read_champion(study.folder)
    if champion is None:
        return
    if study.folder / champion.adapter == folder / "adapter" and _inputs_of(study.revision, arm) != inputs:
        with replacing_folder(kept) as temporary:
            if (folder / "adapter").is_dir():  # else it is gone, and must not come back as another run's
                shutil.copytree(folder / "adapter", temporary / "adapter")
            if (folder / "training.json").is_file():
                shutil.copy2(folder / "training.json", temporary)
        champion = replace(champion, adapter=(kept / "adapter").relative_to(study.folder).as_posix())
        write_json(champion_path(study.folder), champion.to_json())
        show_message(
            f"the champion's adapter of {arm} is kept in {kept}: a final run with other settings takes its place"
        )
    # Asked again: it may have been killed before all of it was up.
    if study.folder / champion.adapter == kept / "adapter":
        publish_files(study.config.study, sorted(path for path in kept.rglob("*") if path.is_file()))
        publish_newest(study.config.study, STANDING_FILE)


def kept_folder(revision: Revision, arm: Arm) -> Path:
    """Where the champion's adapter of a pair lies once another run of the pair has its place in `final`."""
    return revision.path("standing", arm.slug)


def _inputs_of(revision: Revision, arm: Arm) -> str | None:
    """Inputs of the pair's finished final run; None where none has finished."""
    manifest = read_manifest(revision, f"finetune-{arm.slug}")
    return None if manifest is None else manifest.inputs


@task(name="accept-final-run", cache_policy=NO_CACHE, persist_result=False, **IO_RETRIES)
def accept_if_better(study: Study, arm: Arm) -> Acceptance:
    """Let a finished final run take the champion's place if it is better on validation; returns the decision.

    The decision is kept beside the final run and is not made twice against the same champion.
    """
    tracking.use_store(study.folder)
    champion = read_champion(study.folder)
    if champion is not None and _is(champion, study.revision, arm):
        return Acceptance(True, champion.accepted_because)
    known = present_acceptance(study, arm, champion)
    if known is not None and not known.accepted:  # an accepted one that does not stand was lost: decide again
        return known
    run = read_final(study.revision, arm).mlflow_run_id
    if is_remote(study.config.study) and run != UNTRACKED and not tracking.is_tracked(run):
        return Acceptance(False, NOT_TRACKED_HERE)  # not kept: the machine that has the run decides
    return _decide(study, arm, champion, _judge(study, arm, champion))


@task(name="accept-final-run-by-hand", cache_policy=NO_CACHE, persist_result=False, **SENDING)
def accept_by_hand(study: Study, arm: Arm) -> Acceptance:
    """Let a finished final run take the champion's place because a person says so."""
    champion = read_champion(study.folder)
    return _decide(study, arm, champion, Acceptance(True, "accepted by hand"))


def read_acceptance(revision: Revision, arm: Arm, champion: Champion | None) -> Acceptance | None:
    """The decision about a final run against this champion, None where there is none."""
    path = _acceptance_path(revision, arm)
    if not path.is_file():
        return None
    stored = read_json(path)
    against = {"standing": champion_hash(champion), "run": _run_of(revision, arm)}
    return Acceptance.from_json(stored["decision"]) if stored["against"] == against else None


def present_acceptance(study: Study, arm: Arm, champion: Champion | None) -> Acceptance | None:
    """The same as far as it still holds: a refusal for what was forgotten, by the present limit and upstream data."""
    decision = read_acceptance(study.revision, arm, champion)
    if decision is None or decision.forgotten is None:
        return decision
    if decision.forgotten.limit != study.config.search.max_forgetting:
        return None
    return decision if decision.forgotten.asked == study.inputs.upstream_hash else None


def _judge(study: Study, arm: Arm, champion: Champion | None) -> Acceptance:
    if (refused := _forgot_too_much(study, arm)) is not None:
        return refused
    if champion is None:
        return Acceptance(True, "the first final run of this study")
    if champion.model_fingerprint != study.inputs.fingerprint:
        return _not_comparable("they are adapters of different base models")
    champion_adapter = study.folder / champion.adapter
    if not champion_adapter.is_dir():
        return _not_comparable(f"the champion's adapter is gone from {champion_adapter}")
    new_loss, samples = read_final(study.revision, arm).best_val_loss, study.inputs.usable("validation")
    if champion.validation_hash == validation_hash(study.inputs):
        return judge_final(ValidationScore(new_loss, champion.validation_loss, len(samples), len(samples)))
    seen = _training_samples(Revision(study.folder, champion.revision))
    if seen is None:
        return _not_comparable(
            "the validation data changed, and what the champion's adapter was trained on is not known"
        )
    unseen = _not_in(seen, samples, study.inputs.usable_digests("validation"))
    if len(unseen) < min(FEWEST_UNSEEN, len(samples)):
        return _not_comparable(
            f"the champion's adapter was trained on all but {len(unseen)} of the {len(samples)} validation samples, "
            f"fewer than {FEWEST_UNSEEN}"
        )
    # Both afresh: the loss that training kept is the lowest of several checkpoints, and may be autocast's.
    new_loss = _loss(study.inputs, final_folder(study.revision, arm) / "adapter", unseen)
    standing_loss = _loss(study.inputs, champion_adapter, unseen)
    return judge_final(ValidationScore(new_loss, standing_loss, len(unseen), len(samples)))


def _forgot_too_much(study: Study, arm: Arm) -> Acceptance | None:
    """A refusal where `search.max_forgetting` is set and the final run lost more on the upstream tasks."""
    limit = study.config.search.max_forgetting
    if limit is None:
        return None
    F = forgetting_of(study, arm).F
    if F is None:  # the settings ask for upstream tasks
        raise RuntimeError("the upstream tasks gave no measure of forgetting")
    return judge_forgetting(Forgotten(F.value, F.low, F.high, limit, study.inputs.upstream_hash))


def _not_comparable(why: str) -> Acceptance:
    return Acceptance(False, f"cannot be compared with the champion's adapter: {why}; `mars accept` takes it by hand")


def validation_hash(inputs: Inputs) -> str:
    """What a validation loss was measured on, and how: losses with equal hashes can be compared."""
    digests = inputs.usable_digests("validation")
    return content_hash([inputs.fingerprint, inputs.config.recipe.dtype, digests])


def _training_samples(revision: Revision) -> set[str] | None:
    recorded = read_snapshot(revision)
    return None if recorded is None else set(recorded.samples["train"])


def _not_in(seen: set[str], samples: Sequence[Sample], digests: Sequence[str]) -> list[Sample]:
    return [sample for sample, digest in zip(samples, digests, strict=True) if digest not in seen]


def _loss(inputs: Inputs, adapter: Path, samples: Sequence[Sample]) -> float:
    base = inputs.final_base_model
    batches = scored_batches(EncodedDataset(samples, base.processor), base, inputs.config.evaluation_batch_size)
    wrapped = PeftModel.from_pretrained(base.model, str(adapter))
    try:
        return evaluate(wrapped, batches()).overall.loss
    finally:
        remove_adapters(wrapped)


def _decide(study: Study, arm: Arm, champion: Champion | None, decision: Acceptance) -> Acceptance:
    name = champion.registered_model if champion else model_name(study.folder)  # kept where the folder moves
    version = _register(study, arm, name, decision)
    if decision.accepted:  # the file last: a crash before it repeats all of this
        if version:
            move_champion(study.folder, name, version)
        accepted = _champion_of(study, arm, (name, version), decision)
        write_json(champion_path(study.folder), accepted.to_json())
        publish_newest(study.config.study, STANDING_FILE)
    against = {"standing": champion_hash(champion), "run": _run_of(study.revision, arm)}
    write_json(_acceptance_path(study.revision, arm), {"decision": decision.to_json(), "against": against})
    publish_files(study.config.study, [_acceptance_path(study.revision, arm)])
    return decision


def _register(study: Study, arm: Arm, name: str, decision: Acceptance) -> str:
    """Version of the adapter in MLflow's registry; empty, which is said, where the store has no run of it."""
    tracking.use_store(study.folder)
    run = read_final(study.revision, arm).mlflow_run_id
    if tracking.is_tracked(run):
        tags = {
            "mars.revision": str(study.revision.number),
            "mars.pair": arm.pair.slug,
            "mars.accepted": str(decision.accepted),
        }
        return register_adapter(study.folder, name, run, tags, f"{arm}: {decision.reason}")
    if run == UNTRACKED:
        why = "MLflow did not answer when its final run began, so there is no run to register"
    else:
        why = (
            f"its MLflow run {run} is not in {tracking.shown_uri(study.folder)}. To register it, set "
            "MLFLOW_TRACKING_URI to the store that has the run (or restore it there) and run `mars accept`"
        )
    folder = final_folder(study.revision, arm) / "adapter"
    show_message(f"note: the adapter of {arm} in {folder} is not in MLflow's model registry: {why}")
    return ""


def _run_of(revision: Revision, arm: Arm) -> str:
    """What tells a final run from others: its MLflow run, or what it was made from where MLflow has none."""
    run = read_final(revision, arm).mlflow_run_id
    return run if run != UNTRACKED else f"{UNTRACKED} {_inputs_of(revision, arm)}"


def _champion_of(study: Study, arm: Arm, registered: tuple[str, str], decision: Acceptance) -> Champion:
    return Champion(
        revision=study.revision.number,
        pair=arm.pair,
        adapter=(final_folder(study.revision, arm) / "adapter").relative_to(study.folder).as_posix(),
        registered_model=registered[0],
        model_version=registered[1],
        mlflow_run_id=_run_of(study.revision, arm),
        validation_loss=read_final(study.revision, arm).best_val_loss,
        validation_hash=validation_hash(study.inputs),
        model_fingerprint=study.inputs.fingerprint,
        recipe_hash=recipe_hash(study.config),
        data_hash=study.inputs.data.data_hash,
        laws=summaries(read_laws(study.revision)) if laws_path(study.revision).is_file() else {},
        choice_reason=read_choice(study.revision).reason if choice_path(study.revision).is_file() else "",
        accepted_because=decision.reason,
        accepted_at=datetime.now(UTC).isoformat(timespec="seconds"),
        evaluation=_test_scores(study.revision, arm),
    )


def summaries(laws: FittedLaws) -> dict[str, LawSummary | None]:
    """Coefficients and intervals of fitted laws, by name."""
    fits = laws.by_name.items()
    return {name: LawSummary(fit.law, fit.coefficients, fit.intervals) if fit else None for name, fit in fits}


def _test_scores(revision: Revision, arm: Arm) -> dict[str, Any] | None:
    role = read_final(revision, arm).role
    scores = read_evaluation(revision) if evaluation_path(revision).is_file() else {}
    return scores[role].overall.to_json() if role in scores else None


def _is(champion: Champion, revision: Revision, arm: Arm) -> bool:
    return (champion.revision, champion.pair) == (revision.number, arm.pair) and (
        champion.mlflow_run_id == _run_of(revision, arm)
    )


def _acceptance_path(revision: Revision, arm: Arm) -> Path:
    return final_folder(revision, arm) / "acceptance.json"
