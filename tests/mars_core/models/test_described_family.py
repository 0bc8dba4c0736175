"""A model class that neither transformers nor MARS knows, with code of its own in its checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from mars_core.models.families import Family, not_known
from mars_core.models.load_options import Loading
from mars_core.models.loading import load_base, skeleton
from mars_core.models.partition import GROUPS
from mars_core.packing.run import PackRun
from mars_core.packing.train import train_pack
from mars_core.ranks import RankPair
from mars_core.training.recipe import Recipe
from tasks.settings.model import FamilyConfig
from tests.mars_core.models.small_instances import DESCRIBED, DESCRIBED_CODE, DESCRIBED_CONFIG

FAMILY = DESCRIBED


@pytest.fixture(scope="session")
def shared_base(small_base):
    """In place of the demo's: its layers are found by their names, whatever their weights."""
    return small_base


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, shared_base):
    """A small backbone as a checkpoint of that class."""
    folder = tmp_path_factory.mktemp("custom")
    for file in Path(shared_base.model_id).iterdir():
        if file.suffix in (".json", ".jinja"):
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= DESCRIBED_CONFIG
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "custom.py").write_text(DESCRIBED_CODE)
    save_file(
        {f"inner.{name}": w for name, w in shared_base.model.state_dict().items() if name != "lm_head.weight"},  # tied
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def load(checkpoint, family=FAMILY, *, trusted=True):
    loading = Loading(trust_remote_code=trusted)
    return load_base(str(checkpoint), device=torch.device("cpu"), dtype=torch.float64, family=family, loading=loading)


def test_code_in_a_checkpoint_is_not_run_unless_asked(checkpoint):
    with pytest.raises(ValueError, match="comes with code of its own, which is not run unless you ask for it"):
        load(checkpoint, trusted=False)


def test_its_modules_are_found_without_a_description(checkpoint):
    assert load(checkpoint, family=None).partition.family == FAMILY


def test_a_type_whose_modules_cannot_be_guessed_is_answered_with_an_example():
    example = not_known("custom_vl", "it has no vision encoder").partition("named_modules() gives:\n")[2]
    assert len(example.splitlines()) == 5
    described = FamilyConfig.model_validate(yaml.safe_load(example)["family"])
    assert described.as_family() == Family(
        "model.vision_tower",
        ("model.multi_modal_projector",),
        "model.language_model",
        (r"model\.vision_tower\.head\..*",),
    )


def test_a_description_gives_the_partition(checkpoint, shared_base):
    base = load(checkpoint)
    for group in GROUPS:
        expected = [f"inner.{layer.name}" for layer in shared_base.partition.group(group)]
        assert [layer.name for layer in base.partition.group(group)] == expected
    assert base.partition.excluded == ("inner.lm_head",)
    assert skeleton(str(checkpoint), family=FAMILY, trust_remote_code=True)[1] == base.partition


def test_a_described_model_is_calibrated_as_the_known_one(checkpoint, shared_base, batch_of, scored):
    """The same weights and batches: the same losses, to the last bit."""
    bases = (load(checkpoint), shared_base)
    losses = []
    for base in bases:
        result = train_pack(
            base.model,
            base.partition,
            [PackRun(RankPair(2, 4), 0), PackRun(RankPair(0, 2), 1)],
            train_steps=lambda done: [[batch_of(0, 1)], [batch_of(2, 3)]][done:],
            validation=scored(8),
            recipe=Recipe(learning_rate=1e-2, dtype="float64"),
            horizon=2,
            checkpoint_steps=[2],
        )
        losses.append([run.checkpoints[0].val_loss for run in result.runs])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (Family("eyes", (), "inner.model.language_model"), r"no module 'eyes': .*`family` section.*inner\.model"),
        (Family(FAMILY.me, (), FAMILY.llm), r"2 linear layers belong to neither .*`family` section"),
    ],
    ids=["path", "left out"],
)
def test_a_wrong_description_is_refused(checkpoint, family, message):
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        load(checkpoint, family=family)
