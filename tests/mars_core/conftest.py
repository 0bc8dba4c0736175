"""The demo's backbone in double precision, and a few samples of every shape made on the spot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from mars_core.data.collate import collate
from mars_core.data.encode import encode_sample
from mars_core.data.records import PathImage, Sample, Source, Turn
from mars_core.demo.shipped import demo_backbone_path
from mars_core.models.loading import load_base

CPU = torch.device("cpu")
# (turns, number of images, task type): unequal lengths, several turns, several images, none.
CONVERSATIONS = [
    (("<image>\nWhat colour is the ground?", "red"), 1, "attribute"),
    (("<image>\nHow many things are there?", "two", "Where is the blue thing?", "top left"), 1, "conversation"),
    (("<image> or <image>: which is darker?", "The second one is."), 2, "choice"),
    (("Name something.", "A cat."), 0, "text"),
    (("<image>\nDescribe the picture.", "A large green tree at the top right on a blue ground."), 1, "caption"),
    (("<image>\nWhat kind of thing is at the top left?", "animal"), 1, "attribute"),
    (("<image>\nIs it red?", "no", "Is it blue?", "yes", "Is it one thing?", "no"), 1, "conversation"),
    (("<image>\nWhat colour is the ground?", "yellow"), 1, "attribute"),
]


def write_images(folder: Path, count: int) -> list[PathImage]:
    """Pictures of random blocks."""
    random = np.random.default_rng(0)
    images = []
    for number in range(count):
        blocks = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        name = f"{number}.png"
        Image.fromarray(blocks).resize((64, 64), Image.Resampling.NEAREST).save(folder / name)
        images.append(PathImage(name, folder))
    return images


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    images = iter(write_images(folder, sum(count for _, count, _ in CONVERSATIONS)))
    made = []
    for row, (texts, count, task) in enumerate(CONVERSATIONS, start=1):
        turns = tuple(Turn("assistant" if place % 2 else "user", text) for place, text in enumerate(texts))
        pictures = tuple(next(images) for _ in range(count))
        made.append(Sample(str(row), pictures, turns, task, Source(folder / "d.json", row)))
    return made


@pytest.fixture(scope="session")
def shared_base(demo_base):
    return demo_base


@pytest.fixture(scope="session")
def demo_base():
    return load_base(str(demo_backbone_path()), device=CPU, dtype=torch.float64)


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    """The demo's backbone with random weights and two narrow blocks in each tower, where no test asks what it knows."""
    shipped, folder = demo_backbone_path(), tmp_path_factory.mktemp("small") / "backbone"
    shutil.copytree(shipped, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    for tower in ("vision_config", "text_config"):
        config[tower] |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config["text_config"]["layer_types"] = ["full_attention"] * 2
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return load_base(str(folder), device=CPU, dtype=torch.float64)


@pytest.fixture
def base(shared_base):
    """The frozen base model; a test that does not give it back as it was fails here."""
    yield shared_base
    assert not shared_base.model.training
    assert not any(parameter.requires_grad for parameter in shared_base.model.parameters())
    assert not any("lora" in name for name, _ in shared_base.model.named_modules())


@pytest.fixture(scope="session")
def encoded(samples, shared_base):
    return [encode_sample(sample, shared_base.processor) for sample in samples]


@pytest.fixture(scope="session")
def batch_of(encoded, shared_base):
    """Makes a batch of the samples with these numbers."""
    return lambda *numbers: collate([encoded[number] for number in numbers], shared_base.pad_token_id)


@pytest.fixture(scope="session")
def scored(encoded, batch_of):
    """Makes a function that gives scored batches of all samples, so many rows in each."""

    def make(size: int):
        starts = range(0, len(encoded), size)
        numbers = [range(start, min(start + size, len(encoded))) for start in starts]
        return lambda: ((batch_of(*rows), [encoded[row].sample.task for row in rows]) for rows in numbers)

    return make


@pytest.fixture(scope="session")
def random_adapters():
    """Fills the adapters of a model (B starts as zeros), so that they change what it computes."""

    def fill(wrapped, scale: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                    parameter.copy_(noise * scale)

    return fill
