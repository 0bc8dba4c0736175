"""The demo's upstream data: readable, reproducible, and what the backbone can do before any fine-tune."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mars_core.data.collate import collate
from mars_core.data.encode import encode_sample
from mars_core.data.readers import read_samples
from mars_core.demo import demo_backbone_path
from mars_core.demo.pretrain import describe_looks
from mars_core.demo.upstream import build_upstream_data
from mars_core.evaluation.scores import evaluate
from mars_core.models.loading import load_base


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build_upstream_data(tmp_path_factory.mktemp("upstream") / "data", n_samples=24)


@pytest.fixture(scope="module")
def base():
    return load_base(str(demo_backbone_path()), device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize(("task", "least"), [("reading", 0.6), ("looks", 0.45)])
def test_the_backbone_answers_far_more_than_chance(data, base, task, least):
    """Looks have three words each: guessing gives a third."""
    samples = read_samples(getattr(data, task), data.images if task == "looks" else None)
    encoded = [encode_sample(sample, base.processor) for sample in samples]
    found = evaluate(base.model, [(collate(encoded, base.pad_token_id), [task] * len(encoded))])
    assert found.overall.accuracy > least
    assert all(len(sample.images) == (task == "looks") for sample in samples)


def test_answers_are_what_the_pictures_show(data):
    for record in json.loads(data.looks.read_text()):
        pixels = np.asarray(Image.open(data.images / record["image"]), dtype=np.float32)[None, :, :, 0] / 255
        (looks,) = describe_looks(torch.from_numpy(pixels))
        turns = record["conversations"]
        asked = {
            turn["value"].split()[-1].rstrip("?"): answer["value"]
            for turn, answer in zip(turns[::2], turns[1::2], strict=True)
        }
        assert asked.items() <= looks.items()


def test_what_is_there_is_kept_and_other_files_are_refused(data, tmp_path):
    written = data.reading.stat().st_mtime_ns
    assert build_upstream_data(data.folder, n_samples=24).reading.stat().st_mtime_ns == written
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        build_upstream_data(tmp_path)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        build_upstream_data(tmp_path / "new", n_samples=1)
