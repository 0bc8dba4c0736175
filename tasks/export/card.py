"""The model card of a final run, README.md in its adapter's folder: written after training, again after evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core.export.card import CardFacts, adapter_card
from mars_core.metrics.identity import content_hash
from mars_core.models.loading import read_model_type
from mars_core.report.decision import decision_sentences
from tasks.choice.approval import approval_notes
from tasks.choice.fit import laws_path, read_laws
from tasks.choice.search import choice_path, read_choice
from tasks.final.arm import Arm
from tasks.final.evaluate import read_evaluation
from tasks.final.pair import final_folder, finetune_stage
from tasks.final.record import read_final
from tasks.running.retrying import REQUESTS
from tasks.settings.study import StudyConfig
from tasks.storage.files import read_json, replacing
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.revision import recipe_hash
from tasks.study.stage import Stage
from tasks.tracking import runs as tracking

CARD = "README.md"
VERSIONED = ("mars-rank-search", "torch", "transformers", "peft")
HUB_DATASET = re.compile(r"hf://datasets/([^/]+/[^/@]+)")


def card_path(revision: Revision, arm: Arm) -> Path:
    """Where a final run's card lies: where the Hub looks for it."""
    return final_folder(revision, arm) / "adapter" / CARD


def has_adapter(revision: Revision, arm: Arm) -> bool:
    """Whether a final run left an adapter: cards are for adapters."""
    return (final_folder(revision, arm) / "adapter" / "adapter_config.json").is_file()


def card_stage(arm: Arm, text: str) -> Stage:
    """A final run's card as a stage of its own, since it is completed after training.

    text: what the card is to say; equal facts make equal text, so it decides alone whether the card is written again.
    """
    return Stage(
        f"card-{arm.slug}",
        reads=lambda _: (finetune_stage(arm),),
        inputs=lambda study, _: content_hash(text),
        outputs=lambda study: (card_path(study.revision, arm),),
        announced=False,
    )


def card_text(study: Study, arm: Arm, finals: Mapping[str, Arm] | None) -> str:
    """The card of a finished final run.

    finals: the arms by role that the stored test scores are of, None where the test split has not been scored.
    """
    scores = (
        {role: entry.overall.to_json() for role, entry in read_evaluation(study.revision).items()} if finals else {}
    )
    role = _role(study.revision, arm, finals or {})
    facts = CardFacts(
        study=study.folder.name,
        revision=study.revision.number,
        model=study.config.model,
        is_folder=Path(study.config.model).expanduser().exists(),
        model_type=read_model_type(study.config.model, trust_remote_code=study.config.loading.trust_remote_code),
        model_fingerprint=study.inputs.fingerprint,
        four_bit=study.config.loading.four_bit,
        trust_remote_code=study.config.loading.trust_remote_code,
        dtype=study.config.recipe.dtype,
        pair=arm.pair,
        role=role,
        layers=len(read_json(final_folder(study.revision, arm) / "adapter" / "adapter_config.json")["rank_pattern"]),
        recipe=_recipe(study.config, arm),
        recipe_hash=recipe_hash(study.config),
        epochs=study.config.final.epochs,
        seed=study.config.final.seed,
        data_hash=study.inputs.data.data_hash,
        counts={name: len(samples) for name, samples in study.inputs.data.parts.items()},
        datasets=_hub_datasets(study.config),
        training=read_final(study.revision, arm).to_json(),
        scores=scores if role in scores else {},
        pairs={known: final.pair for known, final in (finals or {}).items()},
        laws=read_laws(study.revision).to_json() if laws_path(study.revision).is_file() else None,
        choice=_choice(study.revision),
        notes=tuple(approval_notes(study.revision)) if choice_path(study.revision).is_file() else (),
        versions={name: version(name) for name in VERSIONED},
    )
    return adapter_card(facts)


@task(name="write-model-card", task_run_name="card of {arm}", cache_policy=NO_CACHE, persist_result=False, **REQUESTS)
def write_card(revision: Revision, arm: Arm, text: str) -> str:
    """Write a final run's card beside its adapter, here and among its MLflow run's files; returns its path."""
    path = card_path(revision, arm)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    tracking.use_store(revision.study)
    run = read_final(revision, arm).mlflow_run_id
    if tracking.is_tracked(run):
        tracking.log_file(run, path, "adapter")
    return str(path)


def _role(revision: Revision, arm: Arm, finals: Mapping[str, Arm]) -> str:
    """The arm's role at present, which may not be the one that it was trained in."""
    present = [role for role, final in finals.items() if final == arm]
    return present[0] if present else read_final(revision, arm).role


def _recipe(config: StudyConfig, arm: Arm) -> dict[str, Any]:
    """The recipe as it was trained: where the choice gave learning rates, these and the study's own."""
    recipe = config.recipe.described()
    if arm.learning_rates is None:
        return recipe
    usual = config.recipe.as_recipe().learning_rates
    return recipe | {"learning_rate": str(arm.learning_rates), "learning_rate of the study file": str(usual)}


def _choice(revision: Revision) -> dict[str, Any] | None:
    if not choice_path(revision).is_file():
        return None
    choice = read_choice(revision)
    return {
        "pair": choice.pair,
        "verdict": choice.verdict,
        "reason": " ".join(decision_sentences(choice)),
        "D_target": choice.D_target,
        "decided_by": choice.decided_by,
    }


def _hub_datasets(config: StudyConfig) -> tuple[str, ...]:
    found = HUB_DATASET.match(config.data.train)
    return (found[1],) if found else ()
