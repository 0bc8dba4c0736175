"""The state of a pack at a checkpoint, as plain tensors and JSON values: enough to go on as if never stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from mars_core.packing.adapters import by_group, flatten
from mars_core.packing.run import TrainedRun
from mars_core.ranks import AlphaRules
from mars_core.training.calibration import Checkpoint

FLAT = ("weights", "first_moment", "second_moment")
LAYOUT = "A before B"
"""How a group's vector is laid out; states of another layout are not read."""


@dataclass(frozen=True)
class PackState:
    """Where a pack stands after `step` optimizer steps.

    checkpoint_steps: steps at which the whole pack is measured; those up to `step` have been.
    tensors: by `NUMBER.NAME` of each run still trained: weights and Adam's moments (all flat), the state of its
    dropout generator, and the sums of its gradient norms where they are recorded. runs: by number, its pair, seed,
    checkpoints, diverged_at and Adam's steps by group, as JSON values. seconds: trained so far. layout: of the flat
    tensors.
    """

    step: int
    checkpoint_steps: tuple[int, ...]
    seconds: float
    tensors: Mapping[str, Tensor]
    runs: Sequence[Mapping[str, Any]]
    layout: str = LAYOUT


def take_state(step: int, checkpoint_steps: Sequence[int], seconds: float, trained: Sequence[TrainedRun]) -> PackState:
    """Copy the state of a pack to the CPU."""
    tensors: dict[str, Tensor] = {}
    for number, one in enumerate(trained):
        if one.diverged_at is None:
            for name in FLAT:
                tensors[f"{number}.{name}"] = flatten(getattr(one, name)).cpu()
            tensors[f"{number}.generator"] = one.generator.get_state().cpu()
            if one.norms is not None:
                tensors[f"{number}.norms"] = one.norms.sums.cpu().clone()
    return PackState(step, tuple(checkpoint_steps), seconds, tensors, [_describe(one) for one in trained])


def restore_state(state: PackState, checkpoint_steps: Sequence[int], trained: Sequence[TrainedRun]) -> None:
    """Bring fresh runs to where `state` was taken.

    Raises:
        ValueError: the state is of another pack or version, or of one measured at other steps.
    """
    if state.layout != LAYOUT:
        raise ValueError(
            f"the state at step {state.step} was written by an earlier version, which laid adapters out otherwise: "
            "delete it to train from the start"
        )
    expected = [_identity(_describe(one)) for one in trained]
    if [_identity(stored) for stored in state.runs] != expected:
        raise ValueError(
            f"the state at step {state.step} is of another pack: it holds {[_identity(m) for m in state.runs]}, "
            f"expected {expected}; delete it to train from the start"
        )
    if state.checkpoint_steps != tuple(checkpoint_steps):
        raise ValueError(
            f"the state at step {state.step} is of a pack measured at steps {list(state.checkpoint_steps)}, expected "
            f"{list(checkpoint_steps)}; delete it to train from the start"
        )
    for number, (one, stored) in enumerate(zip(trained, state.runs, strict=True)):
        one.checkpoints = [Checkpoint(**checkpoint) for checkpoint in stored["checkpoints"]]
        one.diverged_at, one.clipped = stored["diverged_at"], stored.get("clipped")
        if one.diverged_at is None:
            _restore_tensors(state, number, one)


def _restore_tensors(state: PackState, number: int, one: TrainedRun) -> None:
    for name in FLAT:
        stored = by_group(state.tensors[f"{number}.{name}"], one.layout)
        for group, vector in getattr(one, name).items():
            vector.copy_(stored[group])
    one.generator.set_state(state.tensors[f"{number}.generator"])
    if one.norms is not None:
        one.norms.sums.copy_(_norms_of(state, number))
    for group, own in one.parameters.items():
        for parameter in own:
            one.optimizer.state[parameter]["step"].fill_(state.runs[number]["steps"][group])
    schedule = one.schedule
    share = schedule.lr_lambdas[0](state.step)
    rates = [rate * share for rate in schedule.base_lrs]
    counted = {"last_epoch": state.step, "_step_count": state.step + 1, "_last_lr": rates}
    schedule.load_state_dict(schedule.state_dict() | counted)
    for group, rate in zip(one.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _norms_of(state: PackState, number: int) -> Tensor:
    found = state.tensors.get(f"{number}.norms")
    if found is None:
        raise ValueError(
            f"the state at step {state.step} is of a pack whose gradient norms were not recorded: delete it to train "
            "from the start"
        )
    return found


def _describe(one: TrainedRun) -> dict[str, Any]:
    rates, alpha = one.run.learning_rates, one.run.lora_alpha
    return {
        "pair": list(one.run.pair),
        "seed": one.run.seed,
        "learning_rates": None if rates is None else list(rates),
        "lora_alpha": list(alpha) if isinstance(alpha, AlphaRules) else alpha,
        "layer_ranks": None if one.run.layer_ranks is None else dict(one.run.layer_ranks.by_layer),
        "checkpoints": [asdict(checkpoint) for checkpoint in one.checkpoints],
        "diverged_at": one.diverged_at,
        "clipped": one.clipped,
        "steps": one.steps,
    }


def _identity(stored: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells runs apart; states of before runs had rates, scales and layer-wise ranks name none of them."""
    own = (stored.get(name) for name in ("learning_rates", "lora_alpha", "layer_ranks"))
    return *stored["pair"], stored["seed"], *own
