"""Runs with ranks of single layers: each is the run that plain peft and torch give alone, and so are its norms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from peft import PeftModel

from mars_core.evaluation.scores import evaluate
from mars_core.models.lora import check_ranks, layer_ranks, trainable_parameters
from mars_core.models.partition import GROUPS
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.run import PackRun
from mars_core.packing.saving import save_adapter
from mars_core.ranks import LayerRanks, RankPair
from tests.mars_core.packing.test_packed_equals_separate import assert_same_run

PAIR = RankPair(3, 3)


def names(base):
    return [layer.name for group in GROUPS for layer in base.partition.group(group)]


def rising(base):
    return LayerRanks.of({name: 1 + number % 5 for number, name in enumerate(names(base))})


def falling(base):
    return LayerRanks.of({name: 5 - number % 5 for number, name in enumerate(names(base))})


def some(base):
    """Every second layer alone has an adapter."""
    return LayerRanks.of(dict.fromkeys(names(base)[::2], 2))


def members_of(base):
    """Equal ones with two seeds too, and a pair among them."""
    own = [(rising(base), 3), (falling(base), 3), (rising(base), 4), (some(base), 5)]
    return [*((PAIR, seed, None, None, ranks) for ranks, seed in own), (RankPair(2, 4), 3)]


@pytest.mark.parametrize("rule", ["2r", "sqrt"])
def test_every_run_of_layer_wise_ranks_is_its_plain_run(pack, plain, base, micro_batches, scored, rule):
    """Tolerances are those of pairs."""
    members = members_of(base) if rule == "2r" else members_of(base)[:2]
    recipe = replace(plain.recipe, lora_alpha=rule)
    result, weights = pack(members, recipe=recipe, adapter_batches=AdapterBatches(len(members), 1))
    for number, (pair, seed, *own) in enumerate(members):
        ranks = own[-1] if own else pair
        expected = list(plain.run(base, ranks, seed, micro_batches, scored(8), recipe=recipe))
        mine = {step: all_weights[number] for step, all_weights in weights.items()}
        assert_same_run(result.runs[number], mine, expected, recipe, loss=1e-8, weight=1e-6)


def test_recorded_norms_are_those_of_the_plain_runs_gradients(pack, plain, base, micro_batches, scored):
    """One step has no picture: it does not count for the vision tower."""
    recipe = replace(plain.recipe, max_grad_norm=1e9)  # gradients stay as they are
    members = members_of(base)[:2]
    result, _ = pack(members, recipe=recipe, record_norms=True)
    for found, (_, seed, *_, ranks) in zip(result.norms, members, strict=True):
        models, seen = [], {}
        for _ in plain.run(base, ranks, seed, micro_batches, scored(8), recipe=recipe, prepare=models.append):
            for name, weight in models[0].named_parameters():
                if weight.grad is not None:
                    seen.setdefault(name, []).append(float(weight.grad.norm()))
        for norm in found:
            a, b = (seen[f"base_model.model.{norm.layer}.lora_{half}.default.weight"] for half in "AB")
            assert norm.steps == len(a)
            assert norm.a == pytest.approx(sum(a) / len(a), rel=1e-6)
            assert norm.b == pytest.approx(sum(b) / len(b), rel=1e-6)
            squares = [math.hypot(*both) ** 2 for both in zip(a, b, strict=True)]
            assert norm.squared == pytest.approx(sum(squares) / len(squares), rel=1e-6)


def test_recorded_norms_outlive_a_stop_and_are_none_where_not_asked_for(pack, base):
    members, states = members_of(base)[:2], []
    whole, _ = pack(members, record_norms=True, on_checkpoint=states.append)
    resumed, _ = pack(members, record_norms=True, resume=states[0])
    assert resumed.norms == whole.norms
    plainly, _ = pack(members[:1], checkpoint_steps=(1,), on_checkpoint=states.append)
    assert plainly.norms == (None,)
    with pytest.raises(ValueError, match="gradient norms were not recorded"):
        pack(members[:1], checkpoint_steps=(1,), record_norms=True, resume=states[-1])
    with pytest.raises(ValueError, match="is of another pack"):
        pack(members[1:2], checkpoint_steps=(1,), resume=states[-1])


def test_a_saved_run_is_an_adapter_that_peft_loads_to_the_same_loss(pack, base, scored, tmp_path):
    ranks = rising(base)
    result, _ = pack([(PAIR, 3, None, None, ranks)], checkpoint_steps=(2,))
    save_adapter(result.weights[0], base.partition, ranks, tmp_path, model_id="base", alpha="2r")
    loaded = PeftModel.from_pretrained(base.model, str(tmp_path)).eval()
    try:
        config = loaded.peft_config["default"]
        assert sorted(config.rank_pattern.values()) == sorted(rank for _, rank in ranks.by_layer)
        assert {config.alpha_pattern[name] / rank for name, rank in config.rank_pattern.items()} == {2}
        found = evaluate(loaded, scored(4)()).overall.loss
    finally:
        loaded.unload()
    assert found == pytest.approx(result.runs[0].checkpoints[-1].val_loss, rel=1e-6)


def test_parameters_are_counted_and_what_does_not_fit_is_refused(base):
    layers = {layer.name: layer for group in GROUPS for layer in base.partition.group(group)}
    ranks = rising(base)
    expected = sum(rank * (layers[name].in_features + layers[name].out_features) for name, rank in ranks.by_layer)
    assert trainable_parameters(base.partition, ranks) == expected
    assert layer_ranks(base.partition, ranks) == dict(ranks.by_layer)
    assert PackRun(PAIR, 0, layer_ranks=ranks).ranks == ranks
    first = next(iter(layers.values()))
    width = min(first.in_features, first.out_features)
    with pytest.raises(ValueError, match=rf"rank {width + 1} of layer .* use 1 to its width, {width}"):
        check_ranks(base.partition, LayerRanks.of({first.name: width + 1}))
    with pytest.raises(ValueError, match=r"name 1 layers that are not adapted \(first: nowhere\)"):
        check_ranks(base.partition, LayerRanks.of({"nowhere": 2}))
    with pytest.raises(ValueError, match="name no layer"):
        check_ranks(base.partition, LayerRanks.of({first.name: 0}))
