"""What holds for every model type, measured on small random-weight instances of the real configuration classes.

    python benchmarks/model_families.py            # measures; writes results/model_families.json and docs/models.md
    python benchmarks/model_families.py --check    # compares the tables in docs/models.md with the record
    python benchmarks/model_families.py --again llava qwen3_5   # measures these types anew, and what is missing

On a CPU, with one batch of two questions about pictures; packed and separate runs in double precision, the final run
and what follows in single precision, as users have them. A type that fails is shown with its message. Subjects: the
families of MARS's table, one that only a description in YAML makes known, and every other type that transformers maps
to AutoModelForImageTextToText, whose modules MARS finds by itself. The record is written after every type, so that a
measurement that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from doc_table import DOCS, markdown, with_table
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as TYPES
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from mars_core.evaluation.answer_loss import token_losses
from mars_core.evaluation.scores import evaluate
from mars_core.models.families import FAMILIES, Family, family_of
from mars_core.models.finding import Undecided, find_family, guess_family, unadaptable
from mars_core.models.lora import add_adapters, remove_adapters
from mars_core.models.partition import GROUPS, check_against_forward, layers_used_by_forward, partition_of
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.adapters import layout_of, to_peft
from mars_core.packing.examine import examine
from mars_core.packing.patching import Structure
from mars_core.packing.run import PackRun
from mars_core.packing.state import PackState
from mars_core.packing.train import train_pack
from mars_core.ranks import RankPair
from mars_core.training.finetune import FinalSettings, Samples, all_logits, finetune
from mars_core.training.optimizer import make_optimizer, make_schedule
from mars_core.training.recipe import Recipe
from tasks.settings.model import FamilyConfig

sys.path.append(str(Path(__file__).parents[1]))  # the small instances lie with the tests
from tests.mars_core.models.any_type import FAILS, LEFT_OUT, question, small_instance, with_plain_experts
from tests.mars_core.models.small_instances import (
    DESCRIBED,
    DESCRIBED_CODE,
    DESCRIBED_CONFIG,
    Batch,
    small_model,
    two_rows,
)

RECORD = Path(__file__).parent / "results" / "model_families.json"
PAGE, MARK, REASONS_MARK = DOCS / "models.md", "model families", "other types"
DESCRIBED_NAME = "described in YAML"
NOT_TRIED = "not tried: the rules that make small instances here do not suffice for it"
STEPS = 4
RECIPE = Recipe(learning_rate=1e-2, batch_size=1, dtype="float64")
PAIRS = (RankPair(2, 4), RankPair(4, 1), RankPair(0, 3), RankPair(3, 0))
FINAL = RankPair(2, 4)

# Packed and separate runs in fp64: sums in another order differ by 1e-15, and Adam's first steps, which divide by small
# gradients, may make 1e-9 of it in a weight. Reloaded in fp32: weights that lie elsewhere in memory may be summed in
# another order, an ulp of logits of a size of 1. Merged weights are rounded once more.
TOLERANCE = {"packed = separate": 1e-9, "reload": 1e-6, "merge": 1e-5}


@dataclass(frozen=True)
class Subject:
    """A family's small instance as a checkpoint on disk.

    precise: what packed and separate runs are compared in: double precision, single where the type knows no other.
    """

    folder: Path
    batch: Batch
    family: Family
    own_code: bool = False
    is_found: bool = False
    precise: torch.dtype = torch.float64

    def load(self, dtype: torch.dtype, folder: Path | None = None) -> Any:
        """The frozen model, read from its checkpoint (or from another of the same class)."""
        model = AutoModelForImageTextToText.from_pretrained(
            folder or self.folder, dtype=dtype, trust_remote_code=self.own_code
        )
        model.config.use_cache = False
        return with_plain_experts(model).requires_grad_(False).eval()

    @property
    def single(self) -> Batch:
        """The batch in single precision."""
        return _as(self.batch, torch.float32)


@dataclass(frozen=True)
class Cell:
    """One family and one capability: whether it holds, and what was measured."""

    holds: bool
    shown: str
    difference: float | None = None


def main() -> None:
    """Measure and write, or check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare the docs with the record, measure nothing")
    parser.add_argument("--again", nargs="+", default=[], metavar="TYPE", help="types to measure anew ('all' for all)")
    parser.add_argument("--out", type=Path, help="write the record here and leave the docs alone")
    options = parser.parse_args()
    if options.check:
        sys.exit(_differs())
    set_verbosity_error()
    disable_progress_bar()
    target = options.out or RECORD
    record = measure(target, options.again)
    if options.out is None:
        PAGE.write_text(_with_tables(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")
    print(table(record), reasons(record), sep="\n\n")


def _differs() -> str | None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    same = _with_tables(text, record) == text and set(record["families"]) == set(subjects())
    return None if same else f"{PAGE.name} and {RECORD.name} differ: run python benchmarks/model_families.py"


def _with_tables(text: str, record: dict[str, Any]) -> str:
    return with_table(with_table(text, MARK, table(record)), REASONS_MARK, reasons(record))


def subjects() -> list[str]:
    """What is measured: MARS's own families, the described one, and the other types of transformers."""
    return [*FAMILIES, DESCRIBED_NAME, *(name for name in TYPES if name not in FAMILIES)]


def measure(target: Path, again: Collection[str]) -> dict[str, Any]:
    """Every capability of every subject that the record in `target` lacks or that is to be measured again."""
    packages = {package: version(package) for package in ("torch", "transformers", "peft")}
    before = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    known = before.get("families", {}) if before.get("packages") == packages and "all" not in again else {}
    families = {name: known[name] for name in subjects() if name in known and name not in again}
    for name in subjects():
        if name not in families:
            print(name, file=sys.stderr)
            with tempfile.TemporaryDirectory() as folder:
                families[name] = measure_family(name, Path(folder))
            ordered = {one: families[one] for one in subjects() if one in families}
            record = {"packages": packages, "tolerances": TOLERANCE, "families": ordered}
            target.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return {"packages": packages, "tolerances": TOLERANCE, "families": {one: families[one] for one in subjects()}}


def measure_family(name: str, folder: Path) -> dict[str, Any]:
    """Every capability of one subject, or the reason why there is none."""
    if name in LEFT_OUT:
        return {"reason": LEFT_OUT[name]}
    try:
        subject = _subject(name, folder / "base")
    except Undecided as undecided:
        if name in FAILS:
            return {"reason": f"refused: {FAILS[name]}", "error": str(undecided)}
        return {"reason": f"refused: {undecided}"}
    except Exception as error:  # noqa: BLE001 - a type that fails is a result
        return {"reason": FAILS.get(name, NOT_TRIED), "error": _said(error)}
    return {capability: asdict(_tried(check, subject, folder)) for capability, check in CAPABILITIES.items()}


def table(record: dict[str, Any]) -> str:
    """The subjects that have capabilities, as a Markdown table."""
    rows = [
        [name if name == DESCRIBED_NAME else f"`{name}`", *(_cell(cells[capability]) for capability in CAPABILITIES)]
        for name, cells in record["families"].items()
        if "reason" not in cells
    ]
    return markdown(["type", *CAPABILITIES], rows)


def reasons(record: dict[str, Any]) -> str:
    """The types that could not be measured, as a Markdown table."""
    rows = [
        [f"`{name}`", cells["reason"].replace("|", "\\|")]
        for name, cells in record["families"].items()
        if "reason" in cells
    ]
    return markdown(["type", "why not"], rows)


def _cell(cell: dict[str, Any]) -> str:
    return f"{'✓' if cell['holds'] else '✗'} {cell['shown']}".replace("|", "\\|")


def _tried(check: Callable[[Subject, Path], Cell], subject: Subject, folder: Path) -> Cell:
    try:
        return check(subject, folder)
    except Exception as error:  # noqa: BLE001 - a capability that fails is a result
        return _failed(error)


def _failed(error: Exception) -> Cell:
    return Cell(False, _said(error))


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _within(capability: str, difference: float) -> Cell:
    return Cell(difference <= TOLERANCE[capability], f"{difference:.1e}" if difference else "0", difference)


def _subject(name: str, folder: Path) -> Subject:
    if name == DESCRIBED_NAME:
        return _described(folder)
    return _known(name, folder) if name in FAMILIES else _found(name, folder)


def _found(name: str, folder: Path) -> Subject:
    """Any other type: its modules are found by a forward and backward pass of the small instance."""
    model = small_instance(name)
    guess_family(model)
    batch, precise = question(model), torch.float64
    model.config.use_cache = False
    try:
        family = find_family(model.double(), _inputs(_as(batch, precise)))
    except Undecided:
        precise = torch.float32
        family = find_family(model.float(), _inputs(batch))
    model.save_pretrained(folder)
    return Subject(folder, _as(batch, precise), family, is_found=True, precise=precise)


def _as(batch: Batch, dtype: torch.dtype) -> Batch:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}


def _inputs(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name != "labels"}


def _known(name: str, folder: Path) -> Subject:
    small_model(name).double().save_pretrained(folder)
    return Subject(folder, two_rows(name), family_of(name))


def _described(folder: Path) -> Subject:
    """A class of its own around a LLaVA-OneVision, with code in its checkpoint and a description as users write it."""
    inner = small_model("llava_onevision").double()
    inner.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | DESCRIBED_CONFIG
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "custom.py").write_text(DESCRIBED_CODE)
    tied = {"lm_head.weight"}
    weights = {f"inner.{name}": w.contiguous() for name, w in inner.state_dict().items() if name not in tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    text = yaml.safe_dump(
        {key: list(value) if isinstance(value, tuple) else value for key, value in vars(DESCRIBED).items()}
    )
    family = FamilyConfig.model_validate(yaml.safe_load(text)).as_family()
    return Subject(folder, two_rows("llava_onevision"), family, own_code=True)


def partition(subject: Subject, folder: Path) -> Cell:
    """Whether every linear layer that a logit depends on is in one group, and the others are heads."""
    model = subject.load(subject.precise)
    found = partition_of(model, subject.family)
    placed = [layer.name for group in GROUPS for layer in found.group(group)]
    used = layers_used_by_forward(model, _inputs(subject.batch))
    check_against_forward(found, used)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    heads = {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
    apart = heads | set(unadaptable(model)) if subject.is_found else heads
    whole = len(placed) == len(set(placed)) and set(placed) == used - apart and linear == {*placed, *found.excluded}
    return Cell(whole, " + ".join(str(len(found.group(group))) for group in GROUPS))


def packed(subject: Subject, folder: Path) -> Cell:
    """The largest difference of an adapter weight between runs trained as one pack and each alone with PEFT."""
    model = subject.load(subject.precise)
    found = partition_of(model, subject.family)
    states: list[PackState] = []
    trained = train_pack(
        model,
        found,
        [PackRun(pair, seed) for seed, pair in enumerate(PAIRS)],
        train_steps=lambda done: [[subject.batch]] * (STEPS - done),
        validation=lambda: [(subject.batch, ["any"] * 2)],
        recipe=_recipe(subject),
        horizon=STEPS,
        checkpoint_steps=[STEPS],
        adapter_batches=AdapterBatches(len(PAIRS), 1),
        on_checkpoint=states.append,
    )
    largest = 0.0
    for number, pair in enumerate(PAIRS):
        weights = to_peft(states[-1].tensors[f"{number}.weights"], layout_of(found, pair))
        alone, loss = _alone(model, subject, pair, number)
        differences = [float((weights[name] - weight).abs().max()) for name, weight in alone.items()]
        largest = max(largest, *differences, abs(trained.runs[number].checkpoints[-1].val_loss - loss))
    if largest <= TOLERANCE["packed = separate"]:
        return _within("packed = separate", largest)
    rounding = _own_rounding(model, subject)
    return Cell(largest <= 10 * rounding, f"{largest:.1e} (alone, rows exchanged: {rounding:.1e})", largest)


def _recipe(subject: Subject) -> Recipe:
    return replace(RECIPE, dtype=str(subject.precise).removeprefix("torch."))


def _own_rounding(model: nn.Module, subject: Subject) -> float:
    """How much an adapter weight of a run by itself moves when the rows of its batch change places, which should change
    nothing but the order of sums: some types compute in fp32 inside, whatever the weights' format."""
    exchanged = {name: torch.cat(value.chunk(2)[::-1]) for name, value in subject.batch.items()}
    alike = subject, replace(subject, batch=exchanged)
    largest = 0.0
    for number, pair in enumerate(PAIRS):
        first, second = (_alone(model, one, pair, number)[0] for one in alike)
        largest = max(largest, *(float((second[name] - weight).abs().max()) for name, weight in first.items()))
    return largest


def _alone(model: nn.Module, subject: Subject, pair: RankPair, seed: int) -> tuple[dict[str, Tensor], float]:
    """Adapter weights and loss of one run with plain PEFT and Adam."""
    wrapped = add_adapters(model, partition_of(model, subject.family), pair, seed=seed)
    try:
        trained = {name: weight for name, weight in wrapped.named_parameters() if weight.requires_grad}
        optimizer = make_optimizer([{"params": list(trained.values())}], _recipe(subject))
        schedule = make_schedule(optimizer, _recipe(subject), STEPS)
        for _ in range(STEPS):
            token_losses(wrapped, subject.batch).mean().backward()
            nn.utils.clip_grad_norm_(trained.values(), RECIPE.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        loss = evaluate(wrapped, [(subject.batch, ["any"] * 2)]).overall.loss
        return {name: weight.detach().clone() for name, weight in trained.items()}, loss
    finally:
        remove_adapters(wrapped).eval()


def shared(subject: Subject, folder: Path) -> Cell:
    """What packing need not compute for every run, tried on the batch (`mars_core.packing.examine`)."""
    model = subject.load(subject.precise)
    structure = examine(model, partition_of(model, subject.family), subject.batch)
    found = [words for words, holds in _savings(structure).items() if holds]
    shown = ", ".join(found) or "nothing"
    return Cell(structure.side_by_side, shown if structure.side_by_side else "one run at a time")


def _savings(structure: Structure) -> dict[str, bool]:
    return {
        "patches": bool(structure.shared),
        "padding": structure.unpadded,
        "last block": bool(structure.answers_only or structure.answer_tails),
        "frozen encoder": bool(structure.projector_entry_layers),
    }


def final_run(subject: Subject, folder: Path) -> Cell:
    """Whether the Trainer's steps lower the validation loss; the adapter is kept for what follows."""
    model = subject.load(torch.float32)
    wrapped = add_adapters(model, partition_of(model, subject.family), FINAL, seed=0)
    scored = [(subject.single, ["any"] * 2)]
    before = evaluate(wrapped, scored).overall.loss
    run = finetune(
        wrapped,
        Samples(_Same(subject.single, 2 * STEPS), lambda items: items[0], lambda: scored),
        FinalSettings(replace(RECIPE, dtype="float32"), 2 * STEPS, 0, folder / "checkpoints"),
    )
    wrapped.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    save_file({"logits": all_logits(wrapped, subject.single)}, folder / LOGITS)
    return Cell(run.best_val_loss < before, f"{before:.2f} → {run.best_val_loss:.2f}", before - run.best_val_loss)


LOGITS = "logits.safetensors"


class _Same(torch.utils.data.Dataset[Batch]):
    def __init__(self, batch: Batch, length: int) -> None:
        self.batch, self.length = batch, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        return self.batch


def reload(subject: Subject, folder: Path) -> Cell:
    """The largest difference of a logit between the trained model and its adapter on a base loaded anew."""
    model = PeftModel.from_pretrained(subject.load(torch.float32), str(folder / "adapter"))
    return _within("reload", _off(model, subject, folder))


def merge(subject: Subject, folder: Path) -> Cell:
    """As for reload, of the adapter merged into the base, saved and loaded as a plain checkpoint."""
    merged = PeftModel.from_pretrained(subject.load(torch.float32), str(folder / "adapter")).merge_and_unload()
    merged.save_pretrained(folder / "merged")
    if subject.own_code:
        (folder / "merged" / "custom.py").write_text(DESCRIBED_CODE)
    return _within("merge", _off(subject.load(torch.float32, folder / "merged"), subject, folder))


def _off(model: nn.Module, subject: Subject, folder: Path) -> float:
    expected = load_file(folder / LOGITS)["logits"]
    return float((all_logits(model, subject.single) - expected).abs().max())


CAPABILITIES: dict[str, Callable[[Subject, Path], Cell]] = {
    "partition (ME + projector + LLM layers)": partition,
    "packed = separate": packed,
    "final run (loss)": final_run,
    "reload": reload,
    "merge": merge,
    "packing shares": shared,
}


if __name__ == "__main__":
    main()
