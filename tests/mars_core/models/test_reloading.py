"""Which adapters PEFT does not find again, against what it does when it saves and loads them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from mars_core.models.finding import LOST, Undecided, find_family, unadaptable
from mars_core.models.partition import partition_of
from mars_core.models.reloading import check_reload, lost_on_reload
from tests.mars_core.models.any_type import question, small_instance


def inputs_of(model):
    return {name: value for name, value in question(model).items() if name != "labels"}


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize("model_type", ["llava", "mistral_large4"])
def test_what_is_lost_is_what_peft_loses(model_type, tmp_path):
    model = small_instance(model_type)
    layers = [name for name, reason in unadaptable(model).items() if reason == LOST]
    layers += [layer.name for layer in partition_of(model, find_family(model, inputs_of(model))).llm]
    wrapped = get_peft_model(model, LoraConfig(r=1, target_modules=layers, init_lora_weights=False))
    trained = {name: weight.clone() for name, weight in wrapped.named_parameters() if ".lora_" in name}
    wrapped.save_pretrained(str(tmp_path))
    loaded = dict(PeftModel.from_pretrained(small_instance(model_type), str(tmp_path)).named_parameters())
    changed = {name for name, weight in trained.items() if not torch.equal(loaded[name], weight)}
    lost = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in changed}
    assert set(lost_on_reload(small_instance(model_type), layers)) == lost
    assert len(lost) == (3 if model_type == "mistral_large4" else 0)


def test_layers_that_would_be_lost_have_no_adapter():
    model = small_instance("mistral_large4")
    family = find_family(model, inputs_of(model))
    check_reload(model, partition_of(model, family))
    described = replace(family, unused=tuple(one for one in family.unused if "mlp" not in one))
    with pytest.raises(ValueError, match=r"3 linear layers other names.*shared_experts\.gate_proj.*`unused`"):
        check_reload(model, partition_of(model, described))


def test_a_model_whose_whole_llm_would_be_lost_is_refused():
    model = small_instance("deepseek_ocr2")
    with pytest.raises(Undecided, match="saved adapters of its LLM other names"):
        find_family(model, inputs_of(model))
