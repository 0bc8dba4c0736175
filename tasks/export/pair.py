"""Take a study's pair away: merged into its base as one checkpoint, or as configuration of another tool."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mars_core.data.records import Sample
from mars_core.export.card import merged_card
from mars_core.export.chat_facts import chat_facts
from mars_core.export.merge import merge_adapter
from mars_core.export.probe import probe_batch
from mars_core.export.rows import RowWriter
from mars_core.export.start import save_start
from mars_core.export.tool import ToolRun
from mars_core.export.tools import TOOLS
from mars_core.models.load_options import Loading
from mars_core.models.loading import load_base, read_model_type
from mars_core.models.lora import layer_alphas, layer_ranks
from mars_core.models.partition import Partition
from mars_core.ranks import LayerRanks, RankPair, Ranks
from mars_core.records import Record
from tasks.choice.approval import pair_to_train
from tasks.choice.search import choice_path
from tasks.export.card import CARD, card_path
from tasks.final.arm import Arm
from tasks.final.compare import training_stage
from tasks.final.pair import final_folder, finetune_stage
from tasks.final.pairs import best_arm
from tasks.final.run import final_steps, run_folder
from tasks.inputs.base_model import DTYPES
from tasks.refine.ranks import SharedOut, baseline_of, shared_out_in
from tasks.running.progress import progress_bar, show_message
from tasks.settings.study import StudyConfig
from tasks.storage.files import read_json, replacing, replacing_folder
from tasks.storage.folder import Revision, is_finished, read_manifest
from tasks.study.opened import Study, reopen_study
from tasks.study.revision import changes_since, identity


@dataclass(frozen=True)
class Merged(Record):
    """A merged checkpoint: where it is, and how far its logits are from those of base and adapter."""

    merged: str
    pair: tuple[int, int]
    revision: int
    dtype: str
    parameters: int
    bytes: int
    logit_difference: float
    tolerance: float


@dataclass(frozen=True)
class Exported(Record):
    """Another tool's configuration with the folder beside it. rows: by file."""

    tool: str
    config: str
    folder: str
    pair: tuple[int, int]
    revision: int
    rows: Mapping[str, int]
    notes: tuple[str, ...]


SPLITS = {"train.jsonl": "train", "validation.jsonl": "validation"}


def merge(config: StudyConfig, ranks: tuple[int, int] | None, out: Path, refined: str | None = None) -> Merged:
    """Write base and adapter of a finished final run as one checkpoint to `out`; returns what was done.

    ranks: the pair, None for the one that the study trains as its choice. refined: name of layer-wise ranks (`mars
    refine`) in place of a pair.

    Raises:
        ValueError: the final run is not there or was changed, the base is not the one it was trained on or was in 4
            bits, or `out` exists.
    """
    if out.exists():
        raise ValueError(f"{out} exists already: give the path of a folder to be made")
    _refuse_four_bit(config)
    study = reopen_study(config)
    revision = study.revision
    if refined is not None:
        shared = _shared(study, ranks, refined)
        pair, adapter, card = RankPair(*shared.pair), _refined_adapter(revision, shared), None
    else:
        arm = _trained_arm(study, ranks)
        pair, adapter, card = arm.pair, _finished_adapter(revision, arm), card_path(revision, arm)
    _require_same_base(study)
    dtype = str(read_json(revision.path("revision.json"))["recipe"]["dtype"])
    show_message(f"merging the adapter of {pair} into {config.model} on the CPU, in {dtype}")
    base = load_base(
        config.model,
        device=torch.device("cpu"),
        dtype=DTYPES[dtype],
        family=config.family.as_family() if config.family else None,
        loading=Loading(trust_remote_code=config.loading.trust_remote_code),
    )
    with replacing_folder(out) as temporary:
        merged = merge_adapter(base, adapter, probe_batch(base), temporary)
        if card is not None and card.is_file():
            text = merged_card(card.read_text(encoding="utf-8"), dtype, config.loading.trust_remote_code)
            (temporary / CARD).write_text(text, encoding="utf-8")
    return Merged(
        merged=str(out),
        pair=pair,
        revision=revision.number,
        dtype=dtype,
        parameters=merged.parameters,
        bytes=sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        logit_difference=merged.difference,
        tolerance=merged.tolerance,
    )


def export_config(
    config: StudyConfig, ranks: tuple[int, int] | None, tool: str, out: Path, refined: str | None = None
) -> Exported:
    """Write the pair as configuration of another tool to `out`, and what it reads into a folder beside it.

    ranks: the pair, None for the one that the study trains as its choice. refined: name of layer-wise ranks (`mars
    refine`) in place of a pair. Returns what was written, with notes.

    Raises:
        ValueError: no pair was chosen, the ranks do not fit the model, the tool is not known, or `out` exists.
    """
    if tool not in TOOLS:
        raise ValueError(f"tool {tool!r} is not known: MARS exports to {', '.join(TOOLS)}")
    folder = companion(out)
    taken = [path for path in (out, folder) if path.exists()]
    if taken:
        raise ValueError(f"{taken[0]} exists already: remove it, or give another file with --output")
    study = reopen_study(config)
    shared = None if refined is None else _shared(study, ranks, refined)
    arm = _arm(study, ranks if shared is None else shared.pair)
    pair = arm.pair
    _require_same_settings(study)
    partition, alpha = study.inputs.partition, config.recipe.as_recipe().alpha
    splits = {file: study.inputs.usable(split) for file, split in SPLITS.items()}
    run = _tool_run(study, partition, arm, shared, splits, folder)
    start = pair if shared is None else LayerRanks.of(shared.ranks)
    rendered = TOOLS[tool].render(run)
    with replacing_folder(folder) as temporary:
        (temporary / START).mkdir()
        save_start(partition, start, config.final.seed, temporary / START, model_id=config.model, alpha=alpha)
        writer = RowWriter(study.inputs.processor, temporary, folder.resolve())
        for file, samples in splits.items():
            _write_rows(temporary / file, samples, partial(TOOLS[tool].row, writer))
        for name, text in rendered.files.items():
            (temporary / name).write_text(text, encoding="utf-8")
    with replacing(out) as file_beside:
        file_beside.write_text(rendered.text, encoding="utf-8")
    return Exported(
        tool=tool,
        config=str(out),
        folder=str(folder),
        pair=pair,
        revision=study.revision.number,
        rows={file: len(samples) for file, samples in splits.items()},
        notes=tuple(rendered.notes),
    )


START = "start"


def default_output(tool: str) -> Path:
    """File that an export goes to where none is named."""
    return Path(f"mars-{tool}{TOOLS[tool].suffix}" if tool in TOOLS else tool)


def companion(out: Path) -> Path:
    """Folder for what a configuration file reads, beside it."""
    return out.with_name(f"{out.stem}-files")


def _tool_run(
    study: Study,
    partition: Partition,
    arm: Arm,
    shared: SharedOut | None,
    splits: Mapping[str, Sequence[Sample]],
    folder: Path,
) -> ToolRun:
    ranks: Ranks = arm.pair if shared is None else LayerRanks.of(shared.ranks)
    pair, recipe, family = arm.pair, arm.baseline.recipe(study.config.recipe.as_recipe()), partition.family
    local = Path(study.config.model).expanduser()
    return ToolRun(
        study=study.folder.name,
        model=str(local.resolve()) if local.exists() else study.config.model,
        model_type=read_model_type(study.config.model, trust_remote_code=study.config.loading.trust_remote_code),
        trust_remote_code=study.config.loading.trust_remote_code,
        four_bit=study.config.loading.four_bit,
        gradient_checkpointing=study.config.loading.gradient_checkpointing,
        pair=pair,
        ranks=layer_ranks(partition, ranks),
        alphas=layer_alphas(partition, ranks, recipe.alpha),
        modules={"projector": family.projector, "me": (family.me,), "llm": (family.llm,)},
        recipe=recipe,
        steps=final_steps(study.inputs),
        epochs=study.config.final.epochs,
        seed=study.config.final.seed,
        micro_batch_size=study.config.micro_batch_size or study.config.recipe.batch_size,
        rows=folder.resolve(),
        start=folder.resolve() / START,
        output=folder.resolve() / "output",
        chat=chat_facts(study.inputs.processor),
        untrained=any(not turn.trained for samples in splits.values() for sample in samples for turn in sample.turns),
        layer_wise=None if shared is None else shared.name,
    )


def _write_rows(path: Path, samples: Sequence[Sample], row: Callable[[Sample], dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file, progress_bar(f"writing {path.name}", len(samples)) as advance:
        for number, sample in enumerate(samples, start=1):
            file.write(json.dumps(row(sample), ensure_ascii=False) + "\n")
            advance(number)


def _refuse_four_bit(config: StudyConfig) -> None:
    if config.loading.four_bit:
        raise ValueError(
            "the base was in 4 bits when the adapter was trained (loading.four_bit); merged into other weights, the "
            "adapter makes another model: load base and adapter as the adapter's README.md says, or set "
            "loading.four_bit to false and run `mars run --new-revision`"
        )


def _shared(study: Study, ranks: tuple[int, int] | None, refined: str) -> SharedOut:
    """Layer-wise ranks of a study by their name."""
    if ranks is not None:
        raise ValueError("--ranks and --refined name two things to export: give one of them")
    found = {shared.name: shared for _, shared in shared_out_in(study.revision)}
    if refined not in found:
        known = f"it has {', '.join(found)}" if found else "it has none: run `mars refine` first"
        raise ValueError(f"there are no layer-wise ranks {refined!r} in {study.revision.folder}: {known}")
    return found[refined]


def _arm(study: Study, ranks: tuple[int, int] | None) -> Arm:
    """A pair at the learning rates that the choice gives it."""
    if ranks is not None:
        return best_arm(study, RankPair(*ranks))
    if not choice_path(study.revision).is_file():
        raise ValueError(
            f"no pair has been chosen yet in {study.revision.folder}: run `mars search` first, or name a pair with "
            "--ranks"
        )
    return best_arm(study, pair_to_train(study.revision))


def _trained_arm(study: Study, ranks: tuple[int, int] | None) -> Arm:
    """As `_arm`; of a pair that was trained at the recipe's rates alone, that."""
    arm = _arm(study, ranks)
    usual = Arm(arm.pair)
    trained = [one for one in (arm, usual) if study.revision.manifest(finetune_stage(one).name).is_file()]
    return trained[0] if trained else arm


def _finished_adapter(revision: Revision, arm: Arm) -> Path:
    """The adapter of a finished final run whose files are all as it left them."""
    stage, pair = finetune_stage(arm).name, arm.pair
    if read_manifest(revision, stage) is None:
        raise ValueError(
            f"there is no finished final run of {pair} in {revision.folder}: run `mars finetune` first "
            f"(`mars finetune --ranks {pair.r_me} {pair.r_llm}` for a pair that was not chosen)"
        )
    _require_whole(revision, stage, str(pair), "mars finetune")
    return final_folder(revision, arm) / "adapter"


def _refined_adapter(revision: Revision, shared: SharedOut) -> Path:
    """As `_finished_adapter`, of layer-wise ranks."""
    baseline = baseline_of(shared, Arm(RankPair(*shared.pair)))
    stage = training_stage(baseline).name
    if read_manifest(revision, stage) is None:
        raise ValueError(f"the ranks {shared.name} have no finished final run in {revision.folder}: run `mars refine`")
    _require_whole(revision, stage, shared.name, "mars refine")
    return run_folder(revision, baseline) / "adapter"


def _require_whole(revision: Revision, stage: str, what: str, command: str) -> None:
    manifest = read_manifest(revision, stage)
    if manifest is None or not is_finished(revision, stage, manifest.inputs):
        raise ValueError(
            f"files of the final run of {what} in {revision.folder} are missing or were changed since: "
            f"run `{command}` again"
        )


def _require_same_settings(study: Study) -> None:
    changed = changes_since(study.revision, identity(study.inputs))
    if changed:
        raise ValueError(
            f"revision {study.revision.number} was made with other settings: {'; '.join(changed)}. Give the study file "
            "and the data that it was made with, or open a new revision"
        )


def _require_same_base(study: Study) -> None:
    stored = read_json(study.revision.path("revision.json"))
    if stored["model_fingerprint"] != study.inputs.fingerprint:
        raise ValueError(
            f"{study.config.model} is not the base model that revision {study.revision.number} was made with "
            f"({stored['model']}, "
            f"fingerprint {stored['model_fingerprint']}): give that checkpoint, or open a new revision"
        )
