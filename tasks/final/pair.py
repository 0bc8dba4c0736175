"""The final fine-tune of one pair: a final run (`tasks.final.run`) whose adapter is what a study is for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core.metrics.schema import PEAKS
from tasks.final.arm import Arm
from tasks.final.run import Described, run_folder, run_inputs, train_final
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.stage import Stage


@task(name="final-fine-tune", task_run_name="fine-tune {arm}", cache_policy=NO_CACHE, persist_result=False)
def finetune_arm(study: Study, arm: Arm, role: str, parent: str) -> str:
    """Train one pair at the full budget and save its adapter; returns the adapter's path.

    Raises:
        RuntimeError: the saved adapter, reloaded, does not give the same logits.
    """
    rates = arm.baseline.recipe(study.config.recipe.as_recipe()).learning_rates
    described = Described(
        name=f"final {arm.slug} ({role})",
        label=f"final fine-tune {arm} ({role})",
        role=role,
        parameters=arm.pair._asdict() | dict(zip(PEAKS, rates, strict=True)),
        record={"pair": list(arm.pair), "learning_rates": list(rates)},
        attached={"adapter": final_folder(study.revision, arm) / "adapter"},  # what the model registry gets
    )
    return str(train_final(study, arm.baseline, described, parent))


def final_folder(revision: Revision, arm: Arm) -> Path:
    """Where a final run's files lie."""
    return run_folder(revision, arm.baseline)


def finetune_stage(arm: Arm) -> Stage:
    """An arm's final run as a stage. Its checkpoints, only for resuming, are gone once it has finished.

    The model card is none of its outputs: later stages complete it, and it is a stage of its own (`tasks.export.card`).
    """
    return Stage(
        f"finetune-{arm.slug}",
        inputs=lambda study, _: run_inputs(study.inputs, arm.baseline),
        outputs=lambda study: _outputs(final_folder(study.revision, arm)),
    )


def _outputs(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted((folder / "adapter").iterdir()) if path.name != "README.md")
    yield folder / "training.json"
