"""A model that hears: its modules are found, and packed runs equal separate ones."""

from __future__ import annotations

import pytest
import torch

from mars_core.data.collate import collate
from mars_core.data.encode import encode_sample
from mars_core.data.readers import read_samples
from mars_core.evaluation.answer_loss import token_losses
from mars_core.models.loading import load_base
from mars_core.models.lora import add_adapters, remove_adapters
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.run import PackRun
from mars_core.packing.train import train_pack
from mars_core.ranks import RankPair
from mars_core.training.recipe import Recipe
from tests.mars_core.small_hearing_model import write_hearing_model, write_spoken_rows


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hearing")
    return load_base(str(write_hearing_model(folder)), device=torch.device("cpu"), dtype=torch.float64)


def test_the_audio_tower_is_the_modality_encoder(hearing):
    found = hearing.partition
    assert {layer.name.split(".layers")[0] for layer in found.group("me")} == {"model.audio_tower"}
    assert [layer.name for layer in found.group("projector")] == ["model.multi_modal_projector.linear"]
    assert (len(found.group("me")), len(found.group("llm"))) == (12, 14)


def test_a_packed_run_starts_with_the_loss_that_peft_has(hearing, tmp_path):
    samples = read_samples(write_spoken_rows(tmp_path, "train", range(8000, 8001)))[:4]
    batch = collate([encode_sample(sample, hearing.processor) for sample in samples], hearing.pad_token_id)
    pairs = (RankPair(2, 4), RankPair(4, 2), RankPair(0, 3))
    recipe = Recipe(learning_rate=1e-2, batch_size=4, dtype="float64")
    trained = train_pack(
        hearing.model,
        hearing.partition,
        [PackRun(pair, seed) for seed, pair in enumerate(pairs)],
        train_steps=lambda done: [[batch]] * (1 - done),
        validation=lambda: [(batch, ["words"] * 4)],
        recipe=recipe,
        horizon=1,
        checkpoint_steps=[1],
        adapter_batches=AdapterBatches(len(pairs), 1),
    )
    for number, pair in enumerate(pairs):
        wrapped = add_adapters(hearing.model, hearing.partition, pair, seed=number)
        try:
            alone = token_losses(wrapped, batch).mean().item()
        finally:
            remove_adapters(wrapped).eval()
        # Sums in another order, in double precision; the spectrogram itself is single.
        assert trained.runs[number].checkpoints[-1].train_loss == pytest.approx(alone, abs=1e-9)
