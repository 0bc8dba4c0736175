import json
import random

import pytest
import torch
from safetensors.torch import load_file

from mars_core.demo import demo_backbone_path
from mars_core.demo.build_backbone import PretrainingPlan, build_backbone
from mars_core.demo.data import is_asked_about
from mars_core.demo.drawings import DRAWING_COLOURS
from mars_core.demo.pretrain import Course, describe_looks, pretrain_tower
from mars_core.demo.text import LOOKS, sample_documents
from mars_core.models.processor import load_processor

SHORT = PretrainingPlan(tower_steps=2, tower_batch=4, llm_steps=2, llm_batch=4, projector_steps=2, projector_batch=4)


def silent(*_):
    return None


def test_looks_of_simple_pictures():
    grey = torch.ones(2, 64, 64)
    grey[0, 10:50, 28:34] = 0.0  # a black upright bar
    grey[1, 4:60, 2:62] = 0.8  # a pale large block
    bar, block = describe_looks(grey)
    assert bar == {"shade": "dark", "shape": "tall", "extent": "slight"}
    assert block == {"shade": "pale", "shape": "even", "extent": "big"}


def test_words_of_looks_are_no_answers_of_the_demo():
    words = {word for words in LOOKS.values() for word in words}
    assert not words & set(DRAWING_COLOURS)


def test_text_holds_no_picture():
    documents = sample_documents(["red apple", "cat"], 300, random.Random(0))
    assert all("<image>" not in message["content"] for document in documents for message in document)
    assert all(document[-1]["role"] == "assistant" for document in documents)


@pytest.mark.slow
def test_short_build_gives_a_loadable_checkpoint_that_repeats(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        build_backbone(folder, SHORT, silent)
    weights, again = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert load_processor(first).num_image_tokens == 16
    video = json.loads((first / "processor_config.json").read_text())["video_processor"]
    assert video["video_processor_type"] == "LlavaOnevisionVideoProcessor"


@pytest.fixture
def pretraining_pictures(monkeypatch):
    """Drawings that tower and projector are given while a backbone is built; neither is trained on them."""
    import mars_core.demo.build_backbone as build

    monkeypatch.setattr(build, "_TOKENIZER_DOCUMENTS", 300)  # the tokenizer is not looked at
    given = {}
    monkeypatch.setattr(build, "grey_pictures", lambda drawings: given.update(tower=drawings))
    monkeypatch.setattr(build, "pretrain_tower", lambda *course: None)
    monkeypatch.setattr(build, "pretrain_llm", lambda *course: None)
    monkeypatch.setattr(
        build, "pretrain_projector", lambda model, processor, drawings, *course: given.update(projector=drawings)
    )
    return given


def test_pretraining_never_sees_a_drawing_of_the_demo(pretraining_pictures, tmp_path):
    build_backbone(tmp_path / "a", SHORT, silent)
    assert pretraining_pictures.keys() == {"tower", "projector"}
    for drawings in pretraining_pictures.values():
        assert len(drawings) > 800
        assert not any(is_asked_about(drawing) for drawing in drawings)


def test_the_tower_learns_something_from_grey_pictures():
    from transformers import LlavaOnevisionForConditionalGeneration

    tower = LlavaOnevisionForConditionalGeneration.from_pretrained(demo_backbone_path()).model.vision_tower
    losses = []
    grey = torch.rand(64, 72, 72, generator=torch.Generator().manual_seed(0)).numpy()
    report = lambda part, step, steps, loss: losses.append(loss)  # noqa: E731
    pretrain_tower(tower, grey, Course(steps=12, batch=16, lr=1e-3, seed=0), report)
    assert losses[-1] < losses[0]
