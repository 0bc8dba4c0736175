from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
from transformers.utils import is_flash_attn_2_available

from mars_core.demo.shipped import demo_backbone_path
from mars_core.evaluation.answer_loss import token_losses
from mars_core.models.load_options import Loading
from mars_core.models.loading import four_bit_config, load_base, read_model_type, skeleton
from mars_core.models.lora import add_adapters
from mars_core.models.partition import GROUPS
from mars_core.models.processor import load_processor, save_processor
from mars_core.packing.adapter_batch import Pass, make_adapter_batch
from mars_core.packing.adapters import by_group, from_peft, layout_of, to_peft
from mars_core.packing.batch import pack_batch
from mars_core.packing.examine import examine
from mars_core.packing.forward import adapter_batch_losses
from mars_core.packing.patching import patched
from mars_core.ranks import RankPair

CPU = torch.device("cpu")


def load(model, dtype=torch.float32):
    return load_base(str(model), device=CPU, dtype=dtype)


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the demo backbone, to be damaged."""
    return shutil.copytree(demo_backbone_path(), tmp_path / "checkpoint")


def encode(processor):
    picture = Image.effect_mandelbrot((70, 50), (-2, -1, 1, 1), 40).convert("RGB")
    return processor(text="<image>\nWhat is it?", images=[picture], return_tensors="pt")


def test_a_base_is_frozen_in_evaluation_mode_and_of_the_dtype_asked():
    base = load(demo_backbone_path(), torch.float64)
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.float64}
    assert base.pad_token_id == base.processor.tokenizer.pad_token_id


def test_a_base_holds_the_checkpoints_weights():
    base = load(demo_backbone_path()).model
    reference = AutoModelForImageTextToText.from_pretrained(demo_backbone_path())
    weights = base.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in reference.state_dict().items())


def test_a_home_folder_is_understood(checkpoint, monkeypatch):
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert read_model_type("~/checkpoint") == "llava_onevision"
    assert load("~/checkpoint").model_id == str(checkpoint)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none' is not a checkpoint folder: no config\.json in it"):
        load(tmp_path / "none")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a checkpoint folder: no config\.json in it"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"model_type": "no_such_type"}', "{}"])
def test_a_configuration_that_transformers_cannot_use_is_refused(checkpoint, text):
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"checkpoint' has no usable config\.json: \S+"):
        load(checkpoint)


def test_a_model_type_that_mars_does_not_know_is_refused_before_its_weights_are_read(checkpoint):
    (checkpoint / "config.json").write_text('{"model_type": "qwen2"}')
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="'qwen2' is not known: MARS knows gemma3,"):
        load(checkpoint)


@pytest.mark.parametrize("file", ["model.safetensors", "processor_config.json", "tokenizer.json"])
def test_a_checkpoint_without_one_of_its_files_is_refused(checkpoint, file):
    (checkpoint / file).unlink()
    with pytest.raises(ValueError, match="checkpoint' could not be loaded: "):
        load(checkpoint)


def test_a_truncated_weight_file_is_refused(checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="checkpoint' could not be loaded: "):
        load(checkpoint)


def test_a_checkpoint_that_lacks_weights_is_refused(checkpoint):
    """transformers would draw them at random and only log it."""
    weights = load_file(checkpoint / "model.safetensors")
    lost = next(name for name in sorted(weights) if name.endswith("q_proj.weight"))
    del weights[lost]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights \(first: .*q_proj\.weight\)"):
        load(checkpoint)


def test_a_pooling_head_that_is_never_used_may_be_missing(make_llava, checkpoint, tmp_path):
    model = make_llava(pooling_head=True)
    weights = {name: weight for name, weight in model.state_dict().items() if ".head." not in name}
    del weights["lm_head.weight"]  # tied to the embeddings
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(checkpoint)
    assert load(checkpoint).partition.me


def test_a_saved_processor_loads_again_and_does_the_same(tmp_path):
    processor = load_processor(demo_backbone_path())
    save_processor(processor, demo_backbone_path(), tmp_path)
    shutil.copy(demo_backbone_path() / "config.json", tmp_path)
    first, second = encode(processor), encode(load_processor(tmp_path))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    assert load_processor(tmp_path).apply_chat_template(turns) == processor.apply_chat_template(turns)


def test_a_saved_processor_keeps_the_video_part_of_its_origin(checkpoint, tmp_path):
    """A machine with torchvision refuses a processor folder that lacks it."""
    settings = json.loads((checkpoint / "processor_config.json").read_text())
    video = {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": {"height": 64, "width": 64}}
    (checkpoint / "processor_config.json").write_text(json.dumps(settings | {"video_processor": video}))
    save_processor(load_processor(checkpoint), checkpoint, tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["video_processor"] == video
    assert saved["processor_class"] == "LlavaOnevisionProcessor"


def test_a_text_checkpoint_has_no_processor(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ValueError, match="no image-and-text processor: choose a vision-language checkpoint"):
        load_processor(tmp_path)


def test_a_skeleton_has_the_shapes_and_no_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    network, partition = skeleton(str(checkpoint))
    base = load(demo_backbone_path())
    assert partition == base.partition
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in base.model.parameters())


def test_the_attention_implementation_is_the_one_asked():
    bases = [
        load_base(str(demo_backbone_path()), device=CPU, dtype=torch.float64, loading=Loading(attn_implementation=name))
        for name in ("eager", "sdpa")
    ]
    text = encode(bases[0].processor)
    text["pixel_values"] = text["pixel_values"].double()
    assert [base.model.config._attn_implementation for base in bases] == ["eager", "sdpa"]
    eager, sdpa = (base.model(**text).logits for base in bases)
    torch.testing.assert_close(eager, sdpa, rtol=1e-6, atol=1e-6)  # softmax of the eager kind is in fp32


@pytest.mark.skipif(is_flash_attn_2_available(), reason="flash-attn is installed")
def test_an_attention_implementation_that_is_not_installed_is_refused():
    with pytest.raises(ValueError, match=r"could not be loaded: .*[fF]lash"):
        load_base(
            str(demo_backbone_path()),
            device=CPU,
            dtype=torch.float32,
            loading=Loading(attn_implementation="flash_attention_2"),
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_spreading_over_gpus_is_refused_without_one():
    with pytest.raises(ValueError, match=r"loading\.spread needs GPUs"):
        load_base(str(demo_backbone_path()), device=CPU, dtype=torch.float32, spread=True)


def test_a_4_bit_base_without_bitsandbytes_is_refused(monkeypatch):
    monkeypatch.setattr("mars_core.models.loading.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match=r"needs bitsandbytes, .* pip install 'mars-rank-search\[four-bit\]'"):
        load_base(str(demo_backbone_path()), device=CPU, dtype=torch.float32, loading=Loading(four_bit=True))


def test_4_bit_settings_are_qloras():
    pytest.importorskip("bitsandbytes")
    settings = four_bit_config(torch.bfloat16).to_dict()
    assert (settings["load_in_4bit"], settings["bnb_4bit_quant_type"]) == (True, "nf4")
    assert (settings["bnb_4bit_use_double_quant"], settings["bnb_4bit_compute_dtype"]) == (True, "bfloat16")


@pytest.mark.parametrize("pair", [RankPair(2, 4), RankPair(0, 4)], ids=str)
def test_a_4_bit_base_is_partitioned_and_packed_as_any_other(pair):
    """On a CPU, where bitsandbytes is installed; losses and gradients are those of PEFT on the same quantized base."""
    bnb = pytest.importorskip("bitsandbytes")
    path = str(demo_backbone_path())
    base = load_base(path, device=CPU, dtype=torch.float32, loading=Loading(four_bit=True))
    assert base.partition == load(path).partition
    layers = [base.model.get_submodule(layer.name) for group in GROUPS for layer in base.partition.group(group)]
    assert all(isinstance(layer, bnb.nn.Linear4bit) for layer in layers)
    batch = dict(encode(base.processor))
    ids = batch["input_ids"]
    batch["labels"] = ids.where(torch.arange(ids.shape[1]) >= ids.shape[1] - 4, -100)
    structure = examine(base.model, base.partition, batch)
    layout = layout_of(base.partition, pair)
    flat = 0.1 * torch.randn(layout.size, generator=torch.Generator().manual_seed(0))
    gradient = torch.zeros_like(flat)
    with patched(base.model, base.partition, structure):
        adapter_batch = make_adapter_batch([layout], [by_group(flat, layout)], [by_group(gradient, layout)])
        loss = adapter_batch_losses(
            base.model, Pass(adapter_batch, pack_batch(batch, unpadded=structure.unpadded))
        ).mean()
        loss.backward()
    wrapped = add_adapters(base.model, base.partition, pair, seed=0)
    named = dict(wrapped.named_parameters())
    with torch.no_grad():
        for name, weight in to_peft(flat, layout).items():
            named[name].copy_(weight)
    expected = token_losses(wrapped, batch).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    found = from_peft({name: named[name].grad for name in to_peft(flat, layout)}, layout)
    torch.testing.assert_close(gradient, found, rtol=1e-2, atol=1e-4)


WITHOUT_TORCHVISION = """
import sys
sys.modules["torchvision"] = None
from mars_core.demo.shipped import demo_backbone_path
from mars_core.models.processor import load_processor
processor = load_processor(demo_backbone_path())
assert "video_processor" not in processor.get_attributes()
assert type(processor).__name__ == "LlavaOnevisionProcessor"
"""


@pytest.mark.slow
def test_processors_load_without_torchvision():
    """In a process of its own, because transformers looks for torchvision once."""
    subprocess.run([sys.executable, "-c", WITHOUT_TORCHVISION], check=True, timeout=300)
