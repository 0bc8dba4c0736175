"""A merged checkpoint computes what base and adapter do, and is a whole checkpoint."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from mars_core.export.merge import TOLERANCES, MergeChangedLogitsError, merge_adapter, relative_difference
from mars_core.export.probe import probe_batch
from mars_core.models.loading import load_base
from mars_core.models.lora import add_adapters
from mars_core.models.processor import load_processor
from mars_core.ranks import RankPair
from mars_core.training.finetune import all_logits

CPU = torch.device("cpu")


def base_of(checkpoint, dtype=torch.float32):
    return load_base(str(checkpoint), device=CPU, dtype=dtype)


@pytest.fixture(scope="module")
def adapter(checkpoint, random_adapters, tmp_path_factory):
    """An adapter whose B is not zero."""
    folder = tmp_path_factory.mktemp("adapter")
    base = base_of(checkpoint)
    wrapped = add_adapters(base.model, base.partition, RankPair(2, 4), seed=0)
    random_adapters(wrapped, 0.2)
    wrapped.save_pretrained(str(folder))
    return folder


def test_the_merged_folder_gives_the_adapters_logits(checkpoint, adapter, tmp_path):
    base = base_of(checkpoint)
    probe = probe_batch(base)
    plain = all_logits(base.model, probe)
    expected = all_logits(PeftModel.from_pretrained(base_of(checkpoint).model, str(adapter)), probe)
    (tmp_path / "merged").mkdir()
    done = merge_adapter(base, adapter, probe, tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    found = all_logits(merged, probe)
    # fp32: (W + sBA)x against Wx + sB(Ax), the same sums in another order, through two short towers.
    assert relative_difference(found, expected) < 1e-5
    assert relative_difference(found, plain) > 1e-2
    assert done.difference < 1e-5
    assert done.parameters == sum(parameter.numel() for parameter in merged.parameters())


def test_the_merged_folder_is_a_whole_checkpoint(checkpoint, adapter, tmp_path):
    (tmp_path / "merged").mkdir()
    base = base_of(checkpoint)
    merge_adapter(base, adapter, probe_batch(base), tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "chat_template.jinja"} <= names
    stored, original = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "merged", checkpoint)
    )
    assert stored.get("use_cache") == original.get("use_cache")  # which training switches off
    assert stored["architectures"] == original["architectures"]
    again = probe_batch(base_of(tmp_path / "merged"))
    expected = probe_batch(base_of(checkpoint))
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    prompts = [load_processor(folder).apply_chat_template(turns) for folder in (tmp_path / "merged", checkpoint)]
    assert prompts[0] == prompts[1]


def test_the_merged_folder_loads_as_its_users_load_it(checkpoint, adapter, tmp_path):
    """Also from a base whose image and video settings lie in the files of transformers 4."""
    pytest.importorskip("torchvision", reason="transformers' video processors need it")
    settings = json.loads((checkpoint / "processor_config.json").read_text())
    old = tmp_path / "old"
    old.mkdir()
    for path in checkpoint.iterdir():
        (old / path.name).write_bytes(path.read_bytes())
    (old / "preprocessor_config.json").write_text(json.dumps(settings.pop("image_processor")))
    (old / "processor_config.json").write_text(json.dumps(settings))
    (tmp_path / "merged").mkdir()
    base = base_of(old)
    merge_adapter(base, adapter, probe_batch(base), tmp_path / "merged")
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert type(processor).__name__ == settings["processor_class"]
    assert processor.video_processor is not None
    tokens = model.generate(**{k: v for k, v in probe_batch(base).items() if k != "labels"}, max_new_tokens=2)
    assert len(processor.batch_decode(tokens)) == 1


def test_half_precision_stays_within_its_rounding(checkpoint, adapter, tmp_path):
    base = base_of(checkpoint, torch.bfloat16)
    (tmp_path / "merged").mkdir()
    probe = probe_batch(base)
    probe = {name: value.bfloat16() if value.is_floating_point() else value for name, value in probe.items()}
    done = merge_adapter(base, adapter, probe, tmp_path / "merged")
    assert 0 < done.difference <= done.tolerance == TOLERANCES[torch.bfloat16]
    stored = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert next(stored.parameters()).dtype == torch.bfloat16


def test_a_merge_that_changes_the_logits_is_refused(checkpoint, adapter, tmp_path, monkeypatch):
    base = base_of(checkpoint)
    merge = LoraModel.merge_and_unload

    def merge_wrongly(self, *arguments, **settings):
        network = merge(self, *arguments, **settings)
        with torch.no_grad():
            network.get_submodule(base.partition.llm[0].name).weight.mul_(0.5)
        return network

    monkeypatch.setattr(LoraModel, "merge_and_unload", merge_wrongly)
    (tmp_path / "merged").mkdir()
    with pytest.raises(MergeChangedLogitsError, match=r"changes the logits by .* serve the adapter unmerged"):
        merge_adapter(base, adapter, probe_batch(base), tmp_path / "merged")
    assert not any((tmp_path / "merged").iterdir())
