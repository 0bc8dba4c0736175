"""A minute of training on the device at hand: what holds, what does not, and how fast it is."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from peft import PeftModel
from torch import Tensor

from mars_core.data.collate import collate
from mars_core.demo.shipped import demo_backbone_path
from mars_core.doctor.samples import batch_of, encoded_samples
from mars_core.doctor.separate import train_separately
from mars_core.export.merge import merge_adapter, relative_difference
from mars_core.models.load_options import Loading
from mars_core.models.loading import Base, load_base
from mars_core.models.lora import add_adapters
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.cores import usable_cores
from mars_core.packing.cost import WIDEST_ADAPTER_BATCH
from mars_core.packing.forward import autocast_of
from mars_core.packing.run import PackRun
from mars_core.packing.train import train_pack
from mars_core.ranks import RankPair
from mars_core.training.finetune import FinalSettings, Samples, all_logits, finetune
from mars_core.training.memory import peak_memory_bytes
from mars_core.training.recipe import Recipe

Precision: TypeAlias = Literal["float32", "bfloat16", "4-bit"]
State: TypeAlias = Literal["ok", "failed", "note"]

RUNS = tuple(
    PackRun(RankPair(r_me, r_llm), seed)
    for r_me, r_llm, seed in (
        (4, 4, 0),
        (4, 16, 0),
        (16, 4, 0),
        (8, 8, 0),
        (8, 8, 1),
        (0, 8, 0),
        (8, 0, 0),
        (16, 16, 0),
    )
)
"""Unequal ranks, two seeds of one pair, and either module without adapter."""
FINAL_PAIR = RankPair(4, 16)
BATCH, STEPS, VALIDATION, FINAL_STEPS = 8, 24, 64, 12

PACKED_TOLERANCES: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.05, "4-bit": 0.05}
"""Largest relative difference of validation losses that is rounding. Sums in another order differ in the last of 24
bits (8 in bfloat16); Adam's first steps divide by gradients that may be as small, which later steps carry on."""
RELOADED_TOLERANCE = 1e-5
"""Of logits after the adapter was read back: the same weights in the same products."""


@dataclass(frozen=True)
class Check:
    """One row of the table.

    precision: of the frozen weights. found, limit: as text, with units. state: a note has nothing to hold against.
    """

    precision: str
    check: str
    state: State
    found: str
    limit: str

    def as_json(self) -> dict[str, str]:
        """The row as plain values."""
        return asdict(self)


def precisions_of(device: torch.device) -> list[Precision]:
    """What is tried: fp32 everywhere; bf16 and 4-bit weights on a GPU."""
    return ["float32", "bfloat16", "4-bit"] if device.type == "cuda" else ["float32"]


def device_at_hand() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def try_training(
    model: str | None = None,
    *,
    device: torch.device | None = None,
    precisions: Sequence[Precision] | None = None,
    steps: int = STEPS,
    learning_rate: float = 2e-3,
    on_start: Callable[[str], object] = lambda precision: None,
) -> Iterator[Check]:
    """Train, save, reload and merge on `device`, precision by precision; gives each row as soon as it is known.

    model: a checkpoint, None for the demo's backbone. precisions: those of the device where it is None. on_start:
    called with each precision before it begins. What raises becomes a failed row, so that the others are still tried.
    """
    device = device or device_at_hand()
    for precision in precisions or precisions_of(device):
        on_start(precision)
        try:
            base = _load(model or str(demo_backbone_path()), device, precision)
        except ValueError as error:
            yield Check(precision, "load the model", "note", str(error), "")
            continue
        recipe = Recipe(learning_rate=learning_rate, dtype="float32" if precision == "float32" else "bfloat16")
        for check in (_packs, _final):
            try:
                yield from check(base, precision, recipe, steps)
            except Exception as error:  # noqa: BLE001  # a row of the table, whatever it is
                yield Check(precision, check.__name__.strip("_"), "failed", f"{type(error).__name__}: {error}", "")
        yield Check(precision, "peak memory", "note", f"{peak_memory_bytes() / 2**20:.0f} MiB so far", "")


def _load(model: str, device: torch.device, precision: Precision) -> Base:
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    return load_base(model, device=device, dtype=dtype, loading=Loading(four_bit=precision == "4-bit"))


def _packs(base: Base, precision: Precision, recipe: Recipe, steps: int) -> Iterator[Check]:
    encoded = encoded_samples(base, BATCH * steps + VALIDATION)
    batches = [batch_of(base, encoded[at : at + BATCH]) for at in range(0, BATCH * steps, BATCH)]
    held_out = batch_of(base, encoded[BATCH * steps :])
    stamps: list[float] = []

    def begun(done: int) -> Iterator[list[dict[str, Tensor]]]:
        for batch in batches[done:]:
            stamps.append(time.perf_counter())
            yield [batch]

    pack = train_pack(
        base.model,
        base.partition,
        RUNS,
        train_steps=begun,
        validation=lambda: [(held_out, ["colour"] * VALIDATION)],
        recipe=recipe,
        horizon=steps,
        checkpoint_steps=[1, steps],
        adapter_batches=_adapter_batches(base),
        on_step=lambda _: stamps.append(time.perf_counter()),
    )
    alone = [train_separately(base, run, batches, held_out, recipe) for run in RUNS]
    yield _losses_fall(precision, [[point.val_loss for point in run.checkpoints] for run in pack.runs])
    yield _packed_is_separate(
        precision,
        [run.checkpoints[-1].val_loss if run.diverged_at is None else math.nan for run in pack.runs],
        [one.val_loss for one in alone],
    )
    # Without the first step, which sets things up, and those that an evaluation follows.
    packed = statistics.mean(end - start for start, end in zip(stamps[2:-2:2], stamps[3:-2:2], strict=True)) / len(RUNS)
    yield _speed(precision, packed, statistics.mean(second for one in alone for second in one.seconds[1:]))


def _adapter_batches(base: Base) -> AdapterBatches:
    device = next(base.model.parameters()).device.type
    return AdapterBatches(WIDEST_ADAPTER_BATCH[device], 1 if device == "cuda" else usable_cores())


def _speed(precision: str, packed: float, separate: float) -> Check:
    """packed, separate: seconds per run and optimizer step."""
    found = f"{1000 * packed:.1f} ms per run and step, {1000 * separate:.1f} ms alone ({separate / packed:.1f} times)"
    return Check(precision, f"speed of {len(RUNS)} runs in a pack, batch {BATCH}", "note", found, "")


def _losses_fall(precision: str, losses: Sequence[Sequence[float]]) -> Check:
    fell = sum(len(one) == 2 and one[1] < one[0] for one in losses)
    ends = [one[-1] for one in losses if one]
    found = f"{fell} of {len(losses)} fell, to {min(ends):.3f}-{max(ends):.3f}" if ends else "none was measured"
    return Check(precision, "validation losses fall", "ok" if fell == len(losses) else "failed", found, "all fall")


def _packed_is_separate(precision: Precision, packed: Sequence[float], separate: Sequence[float]) -> Check:
    limit = PACKED_TOLERANCES[precision]
    each = [abs(one - other) / abs(other) for one, other in zip(packed, separate, strict=True)]
    apart = max(math.inf if math.isnan(one) else one for one in each)  # no comparison with NaN is true
    return Check(
        precision,
        "packed = separate (plain PEFT)",
        "ok" if apart <= limit else "failed",
        f"losses differ by {apart:.1e} at most",
        f"{limit:.0e}",
    )


def _final(base: Base, precision: Precision, recipe: Recipe, steps: int) -> Iterator[Check]:
    encoded = encoded_samples(base, BATCH * min(steps, FINAL_STEPS) + BATCH)
    train, held_out = encoded[:-BATCH], batch_of(base, encoded[-BATCH:])
    wrapped = add_adapters(base.model, base.partition, FINAL_PAIR, seed=0)
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        run = finetune(
            wrapped,
            Samples(
                train,  # type: ignore[arg-type]  # a list is a map-style data set
                lambda items: collate(items, base.pad_token_id),
                lambda: [(held_out, ["colour"] * BATCH)],
            ),
            FinalSettings(recipe, min(steps, FINAL_STEPS), 0, Path(folder) / "checkpoints", evaluations=2),
        )
        yield Check(
            precision,
            "final run (Trainer and PEFT)",
            "ok" if math.isfinite(run.best_val_loss) else "failed",
            f"{run.steps} steps in {run.seconds:.1f} s, validation loss {run.best_val_loss:.3f}",
            "finite",
        )
        adapter = Path(folder) / "adapter"
        with autocast_of(recipe, base.model):  # as the Trainer left it
            trained = all_logits(wrapped, held_out)
        wrapped.save_pretrained(str(adapter))
        plain = replace(base, model=_loaded_again(base, precision))
        yield from _reload(plain, precision, recipe, adapter, held_out, trained)


def _loaded_again(base: Base, precision: Precision) -> torch.nn.Module:
    # A network that nothing has wrapped.
    return _load(base.model_id, next(base.model.parameters()).device, precision).model


def _reload(
    base: Base, precision: Precision, recipe: Recipe, adapter: Path, batch: dict[str, Tensor], trained: Tensor
) -> Iterator[Check]:
    again = PeftModel.from_pretrained(base.model, str(adapter))
    with autocast_of(recipe, base.model):
        found = relative_difference(all_logits(again, batch), trained)
    yield _same_logits(precision, "adapter reloaded", found, RELOADED_TOLERANCE)
    if precision == "4-bit":
        return  # an adapter of 4-bit weights is not merged: it corrects their rounding
    merged = adapter.parent / "merged"
    merged.mkdir()
    dtype = next(base.model.parameters()).dtype
    reloaded = all_logits(again, batch)
    folded = merge_adapter(replace(base, model=again.unload()), adapter, batch, merged)
    yield _same_logits(precision, "adapter merged", folded.difference, folded.tolerance)
    whole = load_base(str(merged), device=batch["input_ids"].device, dtype=dtype)
    found = relative_difference(all_logits(whole.model, batch), reloaded)
    yield _same_logits(precision, "merged checkpoint reloaded", found, folded.tolerance)


def _same_logits(precision: str, what: str, difference: float, limit: float) -> Check:
    state: State = "ok" if difference <= limit else "failed"
    return Check(precision, what, state, f"logits differ by {difference:.1e}", f"{limit:.0e}")
