"""Every training method: which weights it trains, what is special about it, and that its result can be used."""

from __future__ import annotations

import copy
import functools
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from torch.nn import functional

from mars_core import rates
from mars_core.data.collate import collate
from mars_core.evaluation.answer_loss import token_losses
from mars_core.models.loading import load_base
from mars_core.models.partition import GROUPS
from mars_core.ranks import RankPair
from mars_core.training.finetune import all_logits
from mars_core.training.methods import AdaLora, Dora, FullRank, Lora, RsLora
from mars_core.training.methods.method import trained
from mars_core.training.recipe import Recipe
from tests.mars_core.training.final_runs import run_of

PAIR = RankPair(2, 4)
METHODS = {
    "lora": Lora(PAIR),
    "dora": Dora(PAIR),
    "rslora": RsLora(PAIR),
    "adalora": AdaLora(target_rank=4),
    "full rank": FullRank(),
}
RECIPE = Recipe(learning_rate=3e-3, batch_size=2, warmup_ratio=0.0, max_grad_norm=0.0, dtype="float64")
OWN_RATES = replace(RECIPE, module_learning_rates=rates.LearningRates(1e-4, 1e-3, 1e-3))


class Interrupted(Exception):  # noqa: N818
    """Stands for a killed process."""


@pytest.fixture(params=METHODS.values(), ids=METHODS)
def method(request):
    return request.param


@pytest.fixture(scope="session")
def wrapped_by(shared_base):
    """Makes a fresh model of its own trainable, always with the same weights."""
    return lambda method, steps=8: method.wrap(
        copy.deepcopy(shared_base.model), shared_base.partition, seed=3, recipe=RECIPE, steps=steps
    )


@pytest.fixture(scope="session")
def tune_into(shared_base, encoded, batch_of):
    """Trains a wrapped model on the samples, with its checkpoints in a folder."""

    def start(checkpoints, wrapped, method, *, steps=8, **changes):
        rows = (0, 3, 6)
        arguments = {
            "train": encoded,
            "collate": functools.partial(collate, pad_token_id=shared_base.pad_token_id),
            "validation": lambda: [(batch_of(*rows), [encoded[row].sample.task for row in rows])],
            "recipe": RECIPE,
            "steps": steps,
            "seed": 3,
            "checkpoints": checkpoints,
            "method": method,
            "partition": shared_base.partition,
        } | changes
        return run_of(wrapped, arguments)

    return start


@pytest.fixture
def tune(tune_into, base, tmp_path):
    """Trains a wrapped model on the samples."""
    return lambda wrapped, method, *, folder="checkpoints", **changes: tune_into(
        tmp_path / folder, wrapped, method, **changes
    )


@pytest.fixture(scope="session")
def undisturbed(tune_into, wrapped_by, tmp_path_factory):
    """A run of a method from first to last and its model, made once for all tests; to be left as they are."""

    @functools.cache
    def trained_by(name, steps, recipe):
        wrapped = wrapped_by(METHODS[name], steps)
        folder = tmp_path_factory.mktemp("whole")
        return tune_into(folder, wrapped, METHODS[name], steps=steps, recipe=recipe), wrapped

    return trained_by


def weights(wrapped: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trained(wrapped).items()}


def layer_of(name: str) -> str:
    return name.removeprefix("base_model.model.").split(".lora_")[0].removesuffix(".weight")


def test_all_methods_train_the_same_linear_layers(method, wrapped_by, base):
    wrapped = wrapped_by(method)
    expected = {layer.name for group in GROUPS for layer in base.partition.group(group)}
    assert {layer_of(name) for name in trained(wrapped)} == expected
    assert sum(weight.numel() for weight in trained(wrapped).values()) == method.trainable_parameters(base.partition)


def test_a_saved_result_gives_the_same_logits_again(method, wrapped_by, tune, base, batch_of, tmp_path):
    steps = 8 if isinstance(method, AdaLora) else 2  # so many that ranks have fallen
    wrapped, batch = wrapped_by(method, steps), batch_of(0, 1, 2)
    before = all_logits(wrapped, batch)
    tune(wrapped, method, steps=steps)
    after = all_logits(wrapped, batch)
    assert float((after - before).abs().max()) > 1e-3  # it was trained
    method.save(wrapped, tmp_path / "saved")
    fresh = copy.deepcopy(base.model)
    loaded = method.load(fresh, tmp_path / "saved")
    # fp64; kernels may sum in another order over weights that lie elsewhere in memory.
    torch.testing.assert_close(all_logits(loaded, batch), after, rtol=0, atol=1e-12)
    method.unwrap(loaded)
    assert torch.equal(all_logits(fresh, batch), all_logits(base.model, batch))


def test_the_base_comes_back_where_a_method_says_so(method, wrapped_by, tune, base, batch_of):
    wrapped, batch = wrapped_by(method), batch_of(0, 1)
    model = wrapped.base_model.model if method.keeps_base else wrapped
    tune(wrapped, method, steps=2)
    method.unwrap(wrapped)
    assert torch.equal(all_logits(model, batch), all_logits(base.model, batch)) == method.keeps_base
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "steps", "stop", "recipe"),
    [
        pytest.param("adalora", 16, 5, RECIPE, marks=pytest.mark.slow),
        ("adalora", 16, 11, RECIPE),
        ("full rank", 6, 3, RECIPE),
        ("lora", 6, 3, OWN_RATES),
    ],
)
def test_an_interrupted_run_ends_where_an_undisturbed_one_does(
    name, steps, stop, recipe, wrapped_by, tune, undisturbed
):
    """AdaLoRA is stopped while ranks fall, and after they have; LoRA with a rate of each module."""

    def interrupt(step):
        if step == stop:
            raise Interrupted

    method, seen, resumed = METHODS[name], [], wrapped_by(METHODS[name], steps)
    first, whole = undisturbed(name, steps, recipe)
    same = {"steps": steps, "recipe": recipe, "folder": "cut"}
    with pytest.raises(Interrupted):
        tune(wrapped_by(method, steps), method, on_step=interrupt, **same)
    again = tune(resumed, method, on_step=seen.append, **same)
    assert seen[0] in (stop, stop - 1)  # a checkpoint every 2 steps
    assert [e["eval_loss"] for e in again.history if "eval_loss" in e] == [
        e["eval_loss"] for e in first.history if "eval_loss" in e
    ]
    assert again.best_step == first.best_step
    expected = weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(resumed).items())


def test_learning_rates_reach_their_modules(wrapped_by, tune, base):
    """Adam's first step moves every weight that has a gradient by its learning rate, whatever the gradient's size."""
    own = rates.LearningRates(me=1e-6, projector=3e-6, llm=1e-5)
    wrapped = wrapped_by(Lora(PAIR))
    before = weights(wrapped)
    run = tune(wrapped, Lora(PAIR), steps=1, recipe=replace(RECIPE, module_learning_rates=own))
    group_of = {layer.name: group for group in GROUPS for layer in base.partition.group(group)}
    for name, weight in weights(wrapped).items():
        if "lora_B" in name:
            moved = (weight - before[name]).abs().max().item()
            assert moved == pytest.approx(own.rate(group_of[layer_of(name)]), rel=1e-3)  # Adam's eps
    logged = next(entry for entry in run.history if "learning_rate_me" in entry)
    assert [logged[f"learning_rate_{group}"] for group in GROUPS] == pytest.approx([1e-6, 3e-6, 1e-5])


PLUS = replace(
    RECIPE,
    lora_plus_ratio=4.0,
    optimizer="adamw",
    weight_decay=0.2,
    beta1=0.8,
    schedule="linear",
    module_learning_rates=rates.LearningRates(1e-3, 2e-3, 3e-3),
)


def test_dora_is_trained_as_a_loop_with_pefts_lora_plus(base, encoded, batch_of, tune):
    """Two steps of torch's AdamW in PEFT's own groups, module by module; magnitudes have B's rate, as PEFT has it."""
    method, rows = Dora(PAIR), encoded[:4]
    recipe = replace(PLUS, batch_size=len(rows))
    ours = method.wrap(copy.deepcopy(base.model), base.partition, seed=3, recipe=recipe, steps=2)
    reference = copy.deepcopy(ours).train()
    group_of = {layer.name: group for group in GROUPS for layer in base.partition.group(group)}
    optimizers = []
    for group in GROUPS:
        for name, parameter in reference.named_parameters():
            parameter.requires_grad_(".lora_" in name and group_of[layer_of(name)] == group)
        settings = {"betas": (0.8, 0.999), "weight_decay": 0.2, "loraplus_weight_decay": 0.2}
        optimizers.append(
            create_loraplus_optimizer(
                reference, torch.optim.AdamW, lr=recipe.learning_rates.rate(group), loraplus_lr_ratio=4.0, **settings
            )
        )
    for name, parameter in reference.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    for share in (1.0, 0.5):
        token_losses(reference, batch_of(0, 1, 2, 3)).mean().backward()
        for optimizer in optimizers:
            for one in optimizer.param_groups:
                one["lr"] = share * one.setdefault("peak", one["lr"])
            optimizer.step()
            optimizer.zero_grad()
    last = {}
    tune(ours, method, steps=2, train=rows, recipe=recipe, on_step=lambda _: last.update(weights(ours)))
    expected = weights(reference)
    for name, weight in last.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-8)


def test_full_rank_tuning_has_the_rates_of_its_modules(wrapped_by, base):
    method = FullRank()
    groups = method.parameter_groups(wrapped_by(method), base.partition, replace(PLUS, lora_plus_ratio=1.0))
    assert [(one["name"], one["lr"]) for one in groups] == [("me", 1e-3), ("projector", 2e-3), ("llm", 3e-3)]
    assert [len(one["params"]) for one in groups] == [len(base.partition.group(group)) for group in GROUPS]


@pytest.mark.parametrize("method", [AdaLora(target_rank=4), FullRank()], ids=["adalora", "full rank"])
def test_lora_plus_is_refused_where_it_means_nothing(method, base):
    with pytest.raises(ValueError, match=r"recipe\.lora_plus_ratio 4 has no meaning for it"):
        method.check(base.partition, PLUS)


def test_full_rank_tuning_is_adam_on_the_layers_weights(wrapped_by, tune, base, encoded, batch_of):
    """Against a loop written out: one batch, one step of torch's Adam, everything else as it was."""
    method, everything = FullRank(), batch_of(*range(len(encoded)))
    wrapped, reference = wrapped_by(method), copy.deepcopy(base.model)
    names = [f"{layer.name}.weight" for group in GROUPS for layer in base.partition.group(group)]
    parameters = dict(reference.named_parameters())
    for name in names:
        parameters[name].requires_grad_(True)
    optimizer = torch.optim.Adam([parameters[name] for name in names], lr=1e-5)
    token_losses(reference.train(), everything).mean().backward()
    optimizer.step()
    tune(wrapped, method, steps=1, recipe=replace(RECIPE, batch_size=len(encoded), learning_rate=1e-5))
    for name, parameter in wrapped.named_parameters():
        if name in names:
            # The samples stand in another order; where a gradient is nearly zero, its rounding decides Adam's step.
            close = torch.isclose(parameter, parameters[name], rtol=0, atol=1e-8).double().mean()
            assert close > 0.99
        else:
            assert torch.equal(parameter, parameters[name])


def test_half_precision_weights_are_trained_in_full_and_saved_in_their_own(base, batch_of, tune, tmp_path):
    def half():
        return load_base(base.model_id, device=torch.device("cpu"), dtype=torch.bfloat16).model

    method = FullRank()
    wrapped = method.wrap(half(), base.partition, seed=0, recipe=RECIPE, steps=2)
    assert {weight.dtype for weight in trained(wrapped).values()} == {torch.float32}
    tune(wrapped, method, steps=2, recipe=replace(RECIPE, dtype="bfloat16"))
    method.save(wrapped, tmp_path / "saved")
    loaded = method.load(half(), tmp_path / "saved")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    batch = batch_of(0, 1)
    assert torch.equal(all_logits(loaded, batch), all_logits(wrapped, batch))


def test_a_full_rank_checkpoint_has_the_settings_of_its_base(base, tmp_path):
    """Published checkpoints have generation settings that transformers refuses to save, and the cache on."""
    published, saved = tmp_path / "published", tmp_path / "saved"
    shutil.copytree(base.model_id, published)
    settings = {"do_sample": False, "temperature": 0.01, "eos_token_id": 1, "pad_token_id": 0}
    (published / "generation_config.json").write_text(json.dumps(settings))
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps(config | {"use_cache": True}))
    own = load_base(str(published), device=torch.device("cpu"), dtype=torch.float32)
    own.model.generation_config.pad_token_id = 1  # changed, as generating may: it is no longer saved unchecked
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        own.model.save_pretrained(str(tmp_path / "refused"))
    method = FullRank()
    wrapped = method.wrap(own.model, own.partition, seed=0, recipe=RECIPE, steps=2)
    method.save(wrapped, saved)
    assert json.loads((saved / "config.json").read_text())["use_cache"] is True
    assert json.loads((saved / "generation_config.json").read_text()) == settings
    # The model in memory goes on as it was.
    assert (wrapped.config.use_cache, wrapped.generation_config.temperature) == (False, 0.01)
    loaded = method.load(own.model, saved)
    assert loaded.generation_config.temperature == 0.01


def test_rslora_scales_by_the_square_root_of_the_rank(wrapped_by):
    wrapped = wrapped_by(RsLora(RankPair(4, 16)))
    scales = {module.r["default"]: module.scaling["default"] for module in wrapped.modules() if hasattr(module, "r")}
    assert scales == pytest.approx({4: 2 * math.sqrt(4), 16: 2 * math.sqrt(16)})


def test_dora_trains_direction_and_magnitude(wrapped_by, random_adapters):
    """W' = m (W + 2 B A) / ||W + 2 B A||, norms over a row (Liu et al., 2024, Eq. 5)."""
    wrapped = wrapped_by(Dora(PAIR))
    random_adapters(wrapped)
    module = next(module for module in wrapped.modules() if hasattr(module, "lora_magnitude_vector"))
    base = module.get_base_layer()
    direction = base.weight + 2 * module.lora_B["default"].weight @ module.lora_A["default"].weight
    magnitude = module.lora_magnitude_vector["default"].weight
    weight = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
    x = torch.randn(3, base.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(x), functional.linear(x, weight, base.bias), rtol=1e-10, atol=1e-10)


def test_adaloras_regulariser_is_pefts_own(base, batch_of):
    """PEFT adds it to a loss of the model's own, which our loss goes past."""
    method = AdaLora(target_rank=4, orthogonality=0.3)
    wrapped = method.wrap(copy.deepcopy(base.model), base.partition, seed=3, recipe=RECIPE, steps=10)
    batch = batch_of(0, 3)
    with torch.no_grad():
        peft_own = wrapped(**batch).loss
        plain = wrapped.base_model.model(**batch).loss
        ours = method.penalty(wrapped)
    assert float(ours) == pytest.approx(float(peft_own - plain), rel=1e-6)  # transformers' loss is fp32


def test_adaloras_loss_has_the_regulariser_once_per_step(base, encoded, tune, wrapped_by, batch_of):
    """However many micro-batches make up the batch; the gradients are those of the loss written out."""
    method = AdaLora(target_rank=4)
    reference = wrapped_by(method).train()
    everything = batch_of(*range(len(encoded)))
    expected = float(token_losses(reference, everything).mean() + method.penalty(reference))
    for micro in (None, 2):
        recipe = replace(RECIPE, batch_size=len(encoded))
        run = tune(wrapped_by(method), method, steps=1, recipe=recipe, micro_batch_size=micro, folder=f"{micro}")
        assert run.history[0]["loss"] == pytest.approx(expected, rel=1e-5)  # the Trainer collects losses in fp32


def test_adalora_ends_with_its_target_rank_on_average(base, undisturbed):
    method, steps = METHODS["adalora"], 16
    run, wrapped = undisturbed("adalora", steps, RECIPE)
    layers = sum(len(base.partition.group(group)) for group in GROUPS)
    kept = wrapped.peft_config["default"].rank_pattern
    assert len(kept) == layers
    ranks = [sum(mask) for mask in kept.values()]
    assert sum(ranks) == 4 * layers
    assert len(set(ranks)) > 1  # allocated, not uniform
    assert run.best_step >= steps - method.phases(steps)[1]
    for name, weight in trained(wrapped).items():
        if "lora_E" in name:
            assert torch.equal(weight.flatten() != 0, torch.tensor(kept[name.removeprefix("base_model.model.")]))


def test_adalora_allocates_as_a_loop_after_pefts_documentation(base, encoded, batch_of, wrapped_by, tune):
    """`update_and_allocate` after the optimizer's step and before `zero_grad`, on PEFT's own model and loss."""
    method, steps = AdaLora(target_rank=4), 6
    reference = get_peft_model(
        copy.deepcopy(base.model), method.config(base.partition, recipe=RECIPE, steps=steps)
    ).train()
    ours, rows = wrapped_by(method, steps), encoded[:4]
    reference.load_state_dict(ours.state_dict())
    everything = batch_of(*range(len(rows)))
    optimizer = torch.optim.Adam(list(trained(reference).values()), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5 * (1 + math.cos(math.pi * s / steps)))
    for step in range(1, steps + 1):
        # The model's own loss is the mean over answer tokens, as ours is.
        reference(**everything).loss.backward()
        optimizer.step()
        reference.base_model.update_and_allocate(step)
        schedule.step()
        optimizer.zero_grad()
    tune(ours, method, steps=steps, train=rows, recipe=replace(RECIPE, batch_size=len(rows)))
    expected = reference.base_model.peft_config["default"].rank_pattern
    assert ours.base_model.peft_config["default"].rank_pattern == expected


def test_adalora_trains_on_text_alone(base, encoded, wrapped_by, tune):
    method = AdaLora(target_rank=4)
    text_only = [encoded[3]] * 4
    run = tune(wrapped_by(method), method, train=text_only)
    assert run.steps == 8


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (AdaLora(target_rank=8, init_rank=8), "prunes from init_rank down to target_rank, got 8 and 8"),
        (AdaLora(target_rank=4, warmup=0.5, final=0.5), "between warmup and final, got 0.5 and 0.5 of the steps"),
        (AdaLora(target_rank=1000), "rank 1500 at the start is above the width .* use a target_rank up to"),
        (Lora(RankPair(4000, 2)), "rank 4000 for the me is above the width"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(method, message, base):
    with pytest.raises(ValueError, match=message):
        method.check(base.partition, Recipe())


def test_weights_of_another_method_are_refused(wrapped_by):
    state = FullRank().state(wrapped_by(FullRank()))
    with pytest.raises(ValueError, match="belong to another model or method"):
        METHODS["lora"].restore(wrapped_by(METHODS["lora"]), state)
