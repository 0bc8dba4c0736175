from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from mars_core.evaluation.scores import evaluate
from mars_core.models.lora import add_adapters, remove_adapters
from mars_core.packing.adapters import from_peft, initial_weights, layout_of, to_peft
from mars_core.packing.saving import save_adapter
from mars_core.ranks import RankPair


def test_fresh_weights_are_pefts(base):
    for pair, seed in [(RankPair(2, 8), 0), (RankPair(0, 4), 7), (RankPair(4, 0), 7)]:
        layout = layout_of(base.partition, pair)
        found = to_peft(initial_weights(base.model, base.partition, pair, seed), layout)
        wrapped = add_adapters(base.model, base.partition, pair, seed=seed)
        try:
            expected = {name: p.detach().clone() for name, p in wrapped.named_parameters() if p.requires_grad}
        finally:
            remove_adapters(wrapped)
        assert found.keys() == expected.keys()
        assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


def test_flat_weights_go_to_peft_and_back(base):
    layout = layout_of(base.partition, RankPair(2, 4))
    flat = torch.randn(layout.size)
    assert torch.equal(from_peft(to_peft(flat, layout), layout), flat)
    me = sum(2 * (layer.in_features + layer.out_features) for layer in base.partition.me)
    assert layout.sizes["me"] == me


def test_an_exported_run_is_an_adapter_that_peft_loads_to_the_same_loss(pack, base, scored, tmp_path):
    pair = RankPair(4, 2)
    result, _ = pack([(RankPair(2, 2), 3), (pair, 3)])
    save_adapter(result.weights[1], base.partition, pair, tmp_path, model_id="base", alpha="2r")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = PeftModel.from_pretrained(base.model, str(tmp_path)).eval()
    try:
        stored = {name: p for name, p in loaded.named_parameters() if "lora_" in name}
        expected = to_peft(result.weights[1], layout_of(base.partition, pair))
        assert stored.keys() == expected.keys()
        # PEFT reads into fp32 or the model's dtype; the file holds the run's own numbers.
        for name, weight in stored.items():
            torch.testing.assert_close(weight.double(), expected[name], rtol=1e-6, atol=1e-9)
        assert {(c.r, c.lora_alpha) for c in loaded.peft_config.values()} == {(4, 8)}
        found = evaluate(loaded, scored(4)()).overall.loss
    finally:
        loaded.unload()
    assert found == pytest.approx(result.runs[1].checkpoints[-1].val_loss, rel=1e-6)
