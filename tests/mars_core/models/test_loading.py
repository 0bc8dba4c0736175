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

from mars_core.demo.shipped import demo_backbone_path
from mars_core.models.loading import load_base, read_model_type
from mars_core.models.processor import load_processor, save_processor

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
    with pytest.raises(ValueError, match="'qwen2' is not known: MARS knows llava_onevision"):
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
