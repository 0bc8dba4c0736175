"""Packs of small runs, and the same runs as people write them with peft and torch alone."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from weakref import WeakKeyDictionary

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from mars_core.models.partition import GROUPS
from mars_core.packing import train
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.adapters import layout_of, to_peft
from mars_core.packing.run import PackRun
from mars_core.packing.train import train_pack
from mars_core.ranks import LayerRanks
from mars_core.training.recipe import Recipe

# Rows of every optimizer step in two micro-batches; the last step is uneven.
ROWS = [[(0, 1), (2,)], [(2, 3), (0,)], [(4, 5), (1,)], [(6, 7), (3,)], [(1,), (4,)]]
STEPS = (1, 3, 5)
HORIZON = 6
TWO_WIDE = AdapterBatches(2, 1)
RECIPE = Recipe(learning_rate=3e-3, batch_size=3, warmup_ratio=0.34, max_grad_norm=0.2, dtype="float64")


@pytest.fixture(scope="session")
def shared_base(small_base):
    """In place of the demo's: a pack and its plain runs agree on any model."""
    return small_base


@pytest.fixture(scope="session", autouse=True)
def weights_made_once() -> Iterator[None]:
    """PEFT makes the first weights of a run once: to wrap a model in adapters takes as long as two steps."""
    make, known = train.initial_weights, WeakKeyDictionary()

    def initial(model, partition, ranks, seed):
        of_model = known.setdefault(model, {})
        key = (next(model.parameters()).dtype, partition, ranks, seed)
        if key not in of_model:
            of_model[key] = make(model, partition, ranks, seed)
        return of_model[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "initial_weights", initial)
        yield


@pytest.fixture(scope="session")
def micro_batches(batch_of):
    """The micro-batches of every step."""
    return [[batch_of(*rows) for rows in step] for step in ROWS]


@pytest.fixture
def pack(base, micro_batches, scored):
    """Trains a pack of (pair, seed); returns its result and, by step, the adapters of every member in PEFT's names."""

    def start(members, *, base=base, adapter_batches=TWO_WIDE, **changes):
        states = {}
        arguments = {
            "train_steps": lambda done: micro_batches[done:],
            "validation": scored(4),
            "recipe": RECIPE,
            "horizon": HORIZON,
            "checkpoint_steps": STEPS,
            "on_checkpoint": lambda state: states.update({state.step: state}),
        } | changes
        members = [PackRun(*member) for member in members]
        result = train_pack(base.model, base.partition, members, adapter_batches=adapter_batches, **arguments)
        layouts = [layout_of(base.partition, member.ranks) for member in members]
        weights = {
            step: [
                to_peft(state.tensors[f"{number}.weights"], layout) if f"{number}.weights" in state.tensors else None
                for number, layout in enumerate(layouts)
            ]
            for step, state in states.items()
        }
        return result, weights

    return start


@pytest.fixture(scope="session")
def trained_before():
    """What `undisturbed` and `plain_steps` have trained already."""
    return {}


@pytest.fixture
def undisturbed(pack, trained_before):
    """`pack` for a pack that a test leaves alone, trained once for all of them; to be asked for before any patch."""

    def trained(members, *, adapter_batches=TWO_WIDE, recipe=RECIPE):
        key = (tuple(members), adapter_batches, recipe)
        if key not in trained_before:
            trained_before[key] = pack(members, adapter_batches=adapter_batches, recipe=recipe)
        return trained_before[key]

    return trained


@pytest.fixture
def plain_steps(base, micro_batches, scored, trained_before):
    """The steps of the plain run on the pack's own batches, trained once for all tests."""

    def steps(pair, seed):
        if (pair, seed) not in trained_before:
            trained_before[pair, seed] = list(plain_run(base, pair, seed, micro_batches, scored(8)))
        return trained_before[pair, seed]

    return steps


def dense_losses(model, batch):
    """The usual loss on `labels`, summed, and the number of answer tokens."""
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    targets = batch["labels"][:, 1:].flatten()
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="sum"), int(
        (targets != -100).sum()
    )


def plain_model(base, pair, seed, recipe=RECIPE):
    """A copy of the base model with fresh adapters of `pair`, by peft alone; rsLoRA of all modules by PEFT's option.

    pair: a rank pair, or ranks of single layers.
    """
    model = copy.deepcopy(base.model)
    group_of = {layer.name: group for group in GROUPS for layer in base.partition.every(group)}
    ranks = dict(pair.by_layer) if isinstance(pair, LayerRanks) else ranks_of_pair(pair, group_of, recipe)
    rules = recipe.module_lora_alpha._asdict() if recipe.module_lora_alpha else dict.fromkeys(GROUPS, recipe.lora_alpha)
    rslora = set(rules.values()) == {"sqrt"}

    def alpha(name):
        return alpha_of(rules[group_of[name]], 1 if rslora else ranks[name])

    config = LoraConfig(
        r=1,
        lora_alpha=1,
        target_modules=list(ranks),
        rank_pattern={f"^{name}$": rank for name, rank in ranks.items()},
        alpha_pattern={f"^{name}$": alpha(name) for name in ranks},
        use_rslora=rslora,
    )
    torch.manual_seed(seed)
    return get_peft_model(model, config).train()


def ranks_of_pair(pair, group_of, recipe):
    by_group = {"me": pair.r_me, "projector": pair.r_llm, "llm": pair.r_llm}
    if recipe.projector_rank is not None:
        by_group["projector"] = recipe.projector_rank
    ranks = {name: by_group[group] for name, group in group_of.items() if is_target(name, group, recipe.targets)}
    return {name: rank for name, rank in ranks.items() if rank}


def alpha_of(rule, rank):
    return {"2r": 2 * rank, "sqrt": 8 * math.sqrt(rank)}.get(rule, rule)


def is_target(name, group, targets):
    """Whether a layer of the demo's backbone is adapted."""
    if targets == "attention":
        return ".self_attn." in name
    pattern = None if targets == "all" else getattr(targets, group)
    return pattern is None or re.search(pattern, name) is not None


def plain_run(base, pair, seed, micro_batches, validation, *, recipe=RECIPE, prepare=lambda model: None, rates=None):
    """The run alone, with peft and torch; yields what it measures, step by step. rates: peak rate by group.

    The validation loss is None after steps that are not of `STEPS`.
    """
    model = plain_model(base, pair, seed, recipe)
    prepare(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    me = {layer.name for layer in base.partition.me}
    vision = [p for name, p in trained.items() if layer_of(name) in me]
    others = [p for p in trained.values() if not any(p is other for other in vision)]
    if rates is None and recipe.module_learning_rates:
        rates = recipe.module_learning_rates._asdict()
    groups = parameter_groups(base, trained, rates or dict.fromkeys(GROUPS, recipe.learning_rate), recipe)
    optimizer = plain_optimizer(groups, recipe)
    schedule = plain_schedule(optimizer, recipe)
    for number, step in enumerate(micro_batches, start=1):
        optimizer.zero_grad()
        total = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in step)
        loss = 0.0
        for batch in step:
            part = dense_losses(model, batch)[0] / total
            if part.requires_grad:  # vision adapters alone learn nothing from text alone
                part.backward()
            loss += part.item()
        norms = [
            math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in group if p.grad is not None))
            for group in (vision, others)
        ]
        torch.nn.utils.clip_grad_norm_(trained.values(), recipe.max_grad_norm)
        lr = optimizer.param_groups[-1]["lr"] / recipe.lora_plus_ratio
        optimizer.step()
        schedule.step()
        val_loss = dense_validation_loss(model, validation) if number in STEPS else None
        yield loss, val_loss, lr, norms, {name: p.detach().clone() for name, p in trained.items()}


def dense_validation_loss(model, validation):
    model.eval()
    with torch.no_grad():
        parts = [dense_losses(model, part) for part, _ in validation()]
    model.train()
    return sum(float(nats) for nats, _ in parts) / sum(tokens for _, tokens in parts)


def layer_of(name):
    return name.removeprefix("base_model.model.").split(".lora_")[0]


def parameter_groups(base, trained, rates, recipe):
    """Parameter groups of PyTorch's optimizers: the A and the B of each group of layers that has adapters."""
    group_of = {layer.name: group for group in GROUPS for layer in base.partition.every(group)}
    own = {(group, half): [] for group in GROUPS for half in "AB"}
    for name, parameter in trained.items():
        own[group_of[layer_of(name)], "B" if ".lora_B." in name else "A"].append(parameter)
    ratios = {"A": 1.0, "B": recipe.lora_plus_ratio}
    return [{"params": found, "lr": rates[group] * ratios[half]} for (group, half), found in own.items() if found]


def plain_optimizer(groups, recipe):
    betas = (recipe.beta1, recipe.beta2)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=betas, weight_decay=recipe.weight_decay)
    return torch.optim.Adam(groups, betas=betas)


def plain_schedule(optimizer, recipe):
    """By transformers' own names, and a line from 1 to the final share where it has none."""
    share = recipe.final_share
    if recipe.schedule == "linear" and share:
        return LambdaLR(optimizer, lambda step: step / 2 if step < 2 else 1 - (1 - share) * (step - 2) / (HORIZON - 2))
    names = {"constant": "constant_with_warmup", "cosine": "cosine_with_min_lr" if share else "cosine"}
    settings = {
        "cosine": {"min_lr_rate": share} if share else {},
        "warmup_stable_decay": {"num_decay_steps": 3, "min_lr_ratio": share},
    }
    return get_scheduler(
        names.get(recipe.schedule, recipe.schedule), optimizer, 2, HORIZON, settings.get(recipe.schedule, {})
    )


@pytest.fixture(scope="session")
def single_precision(shared_base, encoded, batch_of):
    """The base model and what makes batches, in fp32."""
    base = replace(shared_base, model=copy.deepcopy(shared_base.model).float())

    def single(batch):
        return {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}

    return base, single


@pytest.fixture(scope="session")
def plain():
    """What the oracle is made of: `run`, `model`, and the settings that it shares with `pack`."""
    return SimpleNamespace(run=plain_run, model=plain_model, recipe=RECIPE, steps=STEPS, horizon=HORIZON)
