"""What a calibration will cost, from a few steps measured on the model and data at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise

import torch
from torch import Tensor, nn

from mars_core.evaluation.answer_loss import IGNORE
from mars_core.models.lora import trainable_parameters
from mars_core.models.partition import Partition
from mars_core.packing.adapter_batch import Dropout, Pass, make_adapter_batch
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.adapters import layout_of
from mars_core.packing.batch import pack_batch
from mars_core.packing.examine import examined
from mars_core.packing.flat_buffers import zero_vectors
from mars_core.packing.footprint import BYTES_PER_TRAINABLE, adapter_bytes
from mars_core.packing.forward import adapter_batch_losses, autocast_of
from mars_core.packing.patching import patched
from mars_core.packing.run import PackRun
from mars_core.packing.train import Batch, Step, train_pack
from mars_core.ranks import RankPair
from mars_core.training.recipe import Recipe

# Buffers of the backward pass, and what allocators round up, on top of what the forward pass keeps.
ACTIVATION_MARGIN = 1.5
# Later evaluation batches may have more answer tokens than the first two.
SCORING_MARGIN = 1.5
FULL_PRECISION_BYTES = 4
WIDEST_ADAPTER_BATCH = {"cpu": 4, "cuda": 32}
"""On a CPU more runs at once only crowd the caches."""

PROBE_STEPS = 4


@dataclass(frozen=True)
class Scoring:
    """Bytes of an evaluation.

    run: logits of one run. adapter_batch: the fp32 copies that losses take, made for one run of an adapter
    batch at a time.
    """

    run: int
    adapter_batch: int

    def bytes(self, runs: int, adapter_batches: int) -> int:
        """Of so many runs in so many adapter batches."""
        return runs * self.run + adapter_batches * self.adapter_batch


@dataclass(frozen=True)
class Cost:
    """Measured costs of a model on this device.

    base_bytes: the frozen model. activation_bytes: what the forward pass of one run and one batch keeps for the
    backward pass. scoring: the evaluation of one batch. step_seconds: one optimizer step of one run,
    evaluation_seconds: scoring the validation set once for one run; both as a share, with all adapter batches busy.
    startup_seconds: before the first step.
    """

    base_bytes: int
    activation_bytes: int
    scoring: Scoring
    step_seconds: float
    evaluation_seconds: float
    startup_seconds: float

    def seconds(self, runs: int, steps: int, checkpoints: int) -> float:
        """Predicted time of `runs` runs of `steps` steps, scored at `checkpoints` checkpoints."""
        return self.startup_seconds + runs * (steps * self.step_seconds + checkpoints * self.evaluation_seconds)

    def memory_bytes(self, partition: Partition, pairs: Sequence[RankPair], adapter_batches: AdapterBatches) -> int:
        """Predicted memory of a pack: the model once, every run's adapters, the activations of what is under way."""
        adapters = adapter_bytes(partition, pairs)
        under_way = min(adapter_batches.width * adapter_batches.at_once, len(pairs))
        scored = min((adapter_batches.score_width or adapter_batches.width) * adapter_batches.at_once, len(pairs))
        training = under_way * self.activation_bytes * ACTIVATION_MARGIN
        scoring = self.scoring.bytes(scored, min(adapter_batches.at_once, len(pairs)))
        return self.base_bytes + adapters + int(max(training, scoring))


def adapter_batches_for(
    activations: int,
    scoring: Scoring,
    base_bytes: int,
    state_bytes: int,
    memory_bytes: int,
    *,
    at_once: int,
    device: str,
) -> AdapterBatches:
    """The widest adapter batches that fit a memory budget.

    Args:
        activations: bytes of one run in training. scoring: of an evaluation. state_bytes: adapters of all runs of
            the pack.

    Raises:
        ValueError: not even one run fits.
    """
    room = memory_bytes - base_bytes - state_bytes
    fit, adapter_batches_scored = int(room / (activations * ACTIVATION_MARGIN)), int(room / scoring.bytes(1, 1))
    if min(fit, adapter_batches_scored) < 1:
        needed = base_bytes + state_bytes + max(activations * ACTIVATION_MARGIN, scoring.bytes(1, 1))
        smaller = "micro_batch_size" if fit < 1 else "evaluation_batch_size"
        raise ValueError(
            f"calibration needs about {needed / 1e9:.1f} GB for one run at a time, and "
            f"{memory_bytes / 1e9:.1f} GB are available: lower {smaller}, recipe.max_tokens or calibration."
            "pack_runs, or raise calibration.memory_gigabytes"
        )
    at_once = min(at_once, fit, adapter_batches_scored)
    width = min(WIDEST_ADAPTER_BATCH.get(device, 1), fit // at_once)
    scored = (room // at_once - scoring.adapter_batch) // scoring.run
    return AdapterBatches(width, at_once, None if scored >= width else int(scored))


def scoring_of(model: nn.Module, batches: Iterable[Batch]) -> Scoring:
    """What evaluating the largest of `batches` takes, with a margin for batches with longer answers."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    answers = max(int((batch["labels"][:, 1:] != IGNORE).sum()) for batch in batches)
    logits = int(answers * int(head.weight.shape[0]) * SCORING_MARGIN)
    return Scoring(logits * next(model.parameters()).element_size(), logits * 2 * FULL_PRECISION_BYTES)


def activation_bytes(model: nn.Module, partition: Partition, batch: Batch, pair: RankPair, recipe: Recipe) -> int:
    """Bytes that the forward pass of one run keeps for the backward pass, frozen weights left out."""
    structure = examined(model, partition, batch)
    if recipe.lora_dropout:
        structure = structure.with_every_row()
    layout = layout_of(partition, pair)
    parameter = next(model.parameters())
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    weights, gradients = (zero_vectors([layout], parameter.device, dtype) for _ in range(2))
    adapter_batch = make_adapter_batch([layout], weights, gradients)
    frozen = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    generators = (torch.Generator(device=parameter.device),)
    dropout = Dropout(recipe.lora_dropout, generators) if recipe.lora_dropout else None
    this = Pass(adapter_batch, pack_batch(batch, unpadded=structure.unpadded), dropout)
    keeping = torch.autograd.graph.saved_tensors_hooks(note, lambda t: t)
    with patched(model, partition, structure), keeping, autocast_of(recipe, model):
        adapter_batch_losses(model, this).mean()
    return sum(kept.values())


def measure_cost(
    model: nn.Module,
    partition: Partition,
    pairs: Sequence[RankPair],
    *,
    steps: Callable[[int], Iterable[Step]],
    validation: Callable[[], Iterable[tuple[Batch, Sequence[str]]]],
    validation_samples: int,
    recipe: Recipe,
    memory_bytes: int,
    at_once: int,
) -> tuple[Cost, AdapterBatches]:
    """Train a few steps of as many runs as go at once, and say what one step and one evaluation take.

    Args:
        pairs: of all runs; those with the largest ranks are tried.
        validation_samples: size of the validation set, of which only the first batches are scored here.
        memory_bytes: the budget that the adapter batches must fit.

    Raises:
        ValueError: one run does not fit the budget.
    """
    started = time.perf_counter()
    largest = sorted(pairs, key=lambda pair: trainable_parameters(partition, pair))
    base_bytes = sum(weight.nbytes for weight in model.parameters())
    first = next(iter(steps(0)))
    some = list(islice(validation(), 2))
    each = activation_bytes(
        model, partition, max(first, key=lambda batch: batch["labels"].numel()), largest[-1], recipe
    )
    scoring = scoring_of(model, (batch for batch, _ in some))
    state = trainable_parameters(partition, largest[-1]) * BYTES_PER_TRAINABLE  # packs are cut to the budget later
    device = next(model.parameters()).device.type
    adapter_batches = adapter_batches_for(
        each, scoring, base_bytes, state, memory_bytes, at_once=at_once, device=device
    )
    runs = [
        PackRun(pair, seed) for seed, pair in enumerate(largest[-adapter_batches.width * adapter_batches.at_once :])
    ]
    probe = list(islice(steps(0), PROBE_STEPS))
    stamps: list[float] = []
    scored = train_pack(
        model,
        partition,
        runs,
        train_steps=lambda done: islice(cycle(probe), done, PROBE_STEPS),
        validation=lambda: iter(some),
        recipe=recipe,
        horizon=PROBE_STEPS,
        checkpoint_steps=[PROBE_STEPS],
        adapter_batches=adapter_batches,
        on_step=lambda _: stamps.append(time.perf_counter()),
    )
    del scored
    step_seconds = statistics.median(_differences(stamps[:-1])) / len(runs)
    evaluation = max(0.0, stamps[-1] - stamps[-2] - step_seconds * len(runs))
    share = sum(len(tasks) for _, tasks in some) / validation_samples
    startup = max(0.0, stamps[0] - started - step_seconds * len(runs))
    return Cost(base_bytes, each, scoring, step_seconds, evaluation / len(runs) / share, startup), adapter_batches


def _differences(stamps: Sequence[float]) -> Iterator[float]:
    return (after - before for before, after in pairwise(stamps))
