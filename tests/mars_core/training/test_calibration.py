from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import count

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import get_cosine_schedule_with_warmup

from mars_core.models import lora
from mars_core.models.lora import RankPair
from mars_core.models.partition import GROUPS
from mars_core.training.calibration import clip_gradients, gradient_norm, train_run
from mars_core.training.recipe import Recipe, make_optimizer, make_schedule

ROWS = [(0, 1), (2, 3), (4, 5), (6, 7), (1, 4)]
STEPS = (1, 3, 5)
HORIZON = 6
RECIPE = Recipe(learning_rate=3e-3, batch_size=2, warmup_ratio=0.34, max_grad_norm=0.5, dtype="float64")


@pytest.fixture
def run(base, batch_of, scored, monkeypatch):
    """Runs `train_run` on the samples; returns its result and the adapters' weights just before they are removed."""

    def start(pair, **changes):
        kept = {}

        def keep(wrapped):
            kept.update(lora.adapter_state(wrapped))
            return lora.remove_adapters(wrapped)

        monkeypatch.setattr("mars_core.training.calibration.remove_adapters", keep)
        arguments = {
            "seed": 3,
            "train_batches": [batch_of(*rows) for rows in ROWS],
            "validation": scored(4),
            "recipe": RECIPE,
            "horizon": HORIZON,
            "checkpoint_steps": STEPS,
        } | changes
        return train_run(base.model, base.partition, pair, **arguments), kept

    return start


def dense_loss(model, batch):
    """The usual loss on `labels`, in the model's own precision (transformers' own is always in fp32)."""
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def plain_loop(base, pair, batches, validation):
    """The same run as people write it with peft and torch alone; yields what it measures, step by step."""
    model = copy.deepcopy(base.model)
    names = {group: [layer.name for layer in base.partition.group(group)] for group in GROUPS}
    me, llm = names["me"], names["projector"] + names["llm"]
    ranks = dict.fromkeys(me, pair.r_me) | dict.fromkeys(llm, pair.r_llm)
    ranks = {name: rank for name, rank in ranks.items() if rank}
    config = LoraConfig(
        r=1,
        lora_alpha=1,
        target_modules=list(ranks),
        rank_pattern={f"^{name}$": rank for name, rank in ranks.items()},
        alpha_pattern={f"^{name}$": 2 * rank for name, rank in ranks.items()},
    )
    torch.manual_seed(3)
    model = get_peft_model(model, config).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    vision = [p for name, p in trained.items() if ".vision_tower." in name]
    others = [p for name, p in trained.items() if ".vision_tower." not in name]
    optimizer = torch.optim.Adam(trained.values(), lr=RECIPE.learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=2, num_training_steps=HORIZON)
    for batch in batches:
        loss = dense_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        norms = [math.sqrt(sum(float((p.grad**2).sum()) for p in group)) for group in (vision, others)]
        torch.nn.utils.clip_grad_norm_(trained.values(), RECIPE.max_grad_norm)
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            parts = [(dense_loss(model.eval(), part), (part["labels"] != -100).sum()) for part, _ in validation()]
        model.train()
        val_loss = sum(float(part * tokens) for part, tokens in parts) / sum(int(tokens) for _, tokens in parts)
        yield loss.item(), val_loss, lr, norms, {name: p.detach().clone() for name, p in trained.items()}


@pytest.mark.parametrize("pair", [RankPair(2, 4), RankPair(4, 2), RankPair(0, 4), RankPair(4, 0)], ids=str)
def test_a_run_is_what_a_plain_loop_with_peft_and_torch_gives(run, base, batch_of, scored, pair):
    batches = [batch_of(*rows) for rows in ROWS]
    losses, val_losses, lrs, norms, weights = zip(*plain_loop(base, pair, batches, scored(8)), strict=True)
    result, kept = run(pair)
    assert result.diverged_at is None
    assert [checkpoint.step for checkpoint in result.checkpoints] == list(STEPS)
    spans = [losses[0:1], losses[1:3], losses[3:5]]
    # fp64: sums in another order differ by 1e-15; Adam's first steps divide by gradients as small as 1e-8, which
    # brings the weights to about 1e-9 of each other.
    for checkpoint, span in zip(result.checkpoints, spans, strict=True):
        last = checkpoint.step - 1
        assert checkpoint.train_loss == pytest.approx(sum(span) / len(span), rel=1e-8)
        assert checkpoint.val_loss == pytest.approx(val_losses[last], rel=1e-8)
        assert checkpoint.lr == pytest.approx(lrs[last], rel=1e-12)
        assert checkpoint.grad_norm_me == pytest.approx(norms[last][0], rel=1e-6)
        assert checkpoint.grad_norm_llm == pytest.approx(norms[last][1], rel=1e-6)
        assert (checkpoint.grad_norm_me == 0) == (pair.r_me == 0)
    assert kept.keys() == weights[-1].keys()
    for name, weight in kept.items():
        torch.testing.assert_close(weight, weights[-1][name], rtol=1e-6, atol=1e-8)
    assert any(max(norm) > RECIPE.max_grad_norm for norm in norms)  # clipping took part


def test_the_base_is_given_back_bit_for_bit(run, base):
    before = copy.deepcopy(base.model.state_dict())
    run(RankPair(2, 4))
    after = base.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert all(parameter.grad is None for parameter in base.model.parameters())


def test_the_same_seed_gives_the_same_run_and_another_seed_another(run):
    recipe = replace(RECIPE, lora_dropout=0.2)
    losses = [
        [checkpoint.val_loss for checkpoint in run(RankPair(2, 2), recipe=recipe, seed=seed)[0].checkpoints]
        for seed in (3, 3, 4)
    ]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_runs_do_not_leak_into_each_other(run):
    alone = [checkpoint.val_loss for checkpoint in run(RankPair(2, 4))[0].checkpoints]
    run(RankPair(4, 2))
    assert [checkpoint.val_loss for checkpoint in run(RankPair(2, 4))[0].checkpoints] == alone


def test_checkpoints_do_not_change_the_training(run):
    _, with_three = run(RankPair(2, 2))
    _, with_one = run(RankPair(2, 2), checkpoint_steps=(5,))
    assert all(torch.equal(weight, with_one[name]) for name, weight in with_three.items())


def test_every_step_is_announced_and_no_batch_is_drawn_in_vain(run, batch_of):
    seen, drawn = [], []

    def batches():
        for number in count(1):
            drawn.append(number)
            yield batch_of(0)

    result, _ = run(RankPair(2, 2), train_batches=batches(), checkpoint_steps=(2, 3), on_step=seen.append)
    assert seen == drawn == [1, 2, 3]
    assert [checkpoint.wall_seconds > 0 for checkpoint in result.checkpoints] == [True, True]
    assert all(checkpoint.peak_memory_bytes > 1 << 20 for checkpoint in result.checkpoints)


def test_a_run_that_diverges_says_when_and_gives_the_base_back(run, base, batch_of):
    broken = batch_of(0) | {"pixel_values": torch.full_like(batch_of(0)["pixel_values"], torch.nan)}
    result, _ = run(RankPair(2, 2), train_batches=[batch_of(0), batch_of(1), broken, batch_of(3), batch_of(4)])
    assert result.diverged_at == 3
    assert [checkpoint.step for checkpoint in result.checkpoints] == [1]
    assert not base.model.training


def test_an_absurd_learning_rate_is_a_divergence_not_a_crash(run):
    recipe = replace(RECIPE, learning_rate=1e200, warmup_ratio=0.0, max_grad_norm=0.0)
    result, _ = run(RankPair(2, 2), recipe=recipe, checkpoint_steps=(5,))
    assert result.diverged_at is not None
    assert result.checkpoints == ()


def test_a_validation_loss_without_a_perplexity_is_a_divergence(run, base, monkeypatch):
    """exp of more than 709 nats is not a number a table can hold."""
    head = base.model.get_output_embeddings()
    forward = head.forward
    monkeypatch.setattr(head, "forward", lambda hidden: 1e5 * forward(hidden))
    result, _ = run(RankPair(2, 2), checkpoint_steps=(1, 5))
    assert (result.diverged_at, result.checkpoints) == (1, ())


@pytest.mark.parametrize("steps", [(), (0, 2), (2, 2), (3, 1), (1, 7)])
def test_checkpoint_steps_that_make_no_sense_are_refused(run, steps):
    with pytest.raises(ValueError, match=rf"at most the horizon of 6 steps, got \[{', '.join(map(str, steps))}\]"):
        run(RankPair(2, 2), checkpoint_steps=steps)


def test_too_few_batches_are_refused(run, base, batch_of):
    with pytest.raises(ValueError, match="ran out before step 5: give one batch per optimizer step"):
        run(RankPair(2, 2), train_batches=[batch_of(0)])
    assert not base.model.training


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 100.0])
def test_clipping_is_that_of_torch(max_norm):
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(3, n, dtype=torch.float64)) for n in (1, 4)]
    gradients = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    norm = gradient_norm(parameters)
    assert norm == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in gradients)), rel=1e-14)
    clip_gradients(parameters, max_norm, norm)
    clipped = [parameter.grad.clone() for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    if max_norm:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    for parameter, gradient in zip(parameters, clipped, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-14, atol=0)


def test_no_gradients_have_norm_zero():
    assert gradient_norm([]) == 0
    assert gradient_norm([torch.nn.Parameter(torch.ones(2))]) == 0


def test_the_recipe_is_the_papers():
    """Appendix G.1: Adam at its defaults, batch 8, 1e-5, cosine with 10% warm-up."""
    recipe = Recipe()
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer([weight], recipe)
    reference = torch.optim.Adam([weight], lr=1e-5)
    assert (type(optimizer), optimizer.defaults) == (torch.optim.Adam, reference.defaults)
    assert recipe.batch_size == 8
    assert recipe.warmup_steps(200) == 20
    schedule = make_schedule(optimizer, recipe, 200)
    rates = []
    for _ in range(201):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    for step, rate in enumerate(rates):
        ramp = step / 20 if step < 20 else (1 + math.cos(math.pi * (step - 20) / 180)) / 2
        assert rate == pytest.approx(1e-5 * ramp, abs=1e-18)
