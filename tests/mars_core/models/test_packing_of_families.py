"""Every known family goes through the packed engine unchanged, and gives peft's gradients."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from mars_core.evaluation.answer_loss import token_losses
from mars_core.models.families import FAMILIES, family_of
from mars_core.models.lora import add_adapters, remove_adapters
from mars_core.models.partition import partition_of
from mars_core.packing.adapter_batch import Pass, make_adapter_batch
from mars_core.packing.adapters import PEFT_A, PEFT_B, by_group, initial_weights, layout_of
from mars_core.packing.batch import pack_batch
from mars_core.packing.examine import examine
from mars_core.packing.flat_buffers import zero_vectors
from mars_core.packing.forward import adapter_batch_losses
from mars_core.packing.patching import patched
from mars_core.packing.run import PackRun
from mars_core.packing.train import train_pack
from mars_core.ranks import RankPair
from mars_core.training.recipe import Recipe
from tests.mars_core.models.small_instances import two_rows


@dataclass(frozen=True)
class Savings:
    """Which of the savings hold for a family; the patch embedding and the last block's answers are saved in all."""

    unpadded: bool
    entry_layers: frozenset[str]


def entry_layers(*names: str) -> frozenset[str]:
    return frozenset(f"model.{name}" for name in names)


MERGERS = entry_layers("visual.merger.linear_fc1", *(f"visual.deepstack_merger_list.{n}.linear_fc1" for n in range(2)))
SAVINGS = {
    "llava_onevision": Savings(True, entry_layers("multi_modal_projector.linear_1")),
    "qwen2_vl": Savings(True, entry_layers("visual.merger.mlp.0")),
    "qwen2_5_vl": Savings(True, entry_layers("visual.merger.mlp.0")),
    "qwen3_vl": Savings(True, MERGERS),
    "idefics3": Savings(True, entry_layers("connector.modality_projection.proj")),
    "smolvlm": Savings(True, entry_layers("connector.modality_projection.proj")),
    "internvl": Savings(True, entry_layers("multi_modal_projector.linear_1")),
    "gemma3": Savings(False, frozenset()),  # image tokens see one another both ways; no linear layer in the projector
}


def test_the_savings_of_every_known_family_are_stated():
    assert SAVINGS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("pairs", [[(2, 4), (4, 1), (0, 3), (3, 0)], [(0, 2), (0, 4)]], ids=["mixed", "frozen encoder"])
def test_losses_and_gradients_are_pefts(family_model, pairs):
    """fp64; rotary tables and norms inside transformers are fp32, so roundings differ by up to 1e-8."""
    model_type, model = family_model
    model = model.double().requires_grad_(False)
    batch = two_rows(model_type)
    partition = partition_of(model, family_of(model_type))
    structure = examine(model, partition, batch)
    assert structure.unpadded == SAVINGS[model_type].unpadded
    assert len(structure.answers_only) == 2  # the last block's queries and output
    assert len(structure.answer_tails) == 1  # its MLP
    assert len(structure.shared) == 1  # the patch embedding
    assert structure.projector_entry_layers == SAVINGS[model_type].entry_layers
    packed = assert_pefts(model, partition, structure, batch, pairs)
    assert packed.features.keys() == (structure.projector_entry_layers if pairs[0][0] == 0 else set())


@pytest.mark.parametrize("family_model", ["gemma3"], indirect=True)
def test_a_sliding_window_is_cut_inside_each_sequence(family_model):
    """Sequences of 5 and 12 tokens, and a window of 6 in the first block: text alone needs no padding."""
    model_type, model = family_model
    model = model.double().requires_grad_(False)
    ids = torch.randint(7, 32, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    labels = torch.where(mask.bool(), ids, -100)
    labels[:, :3] = -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    partition = partition_of(model, family_of(model_type))
    structure = examine(model, partition, batch)
    assert structure.unpadded
    assert_pefts(model, partition, structure, batch, [(0, 2), (0, 4)])


@pytest.mark.parametrize("family_model", ["llava_onevision", "internvl"], indirect=True)
def test_one_row_of_position_ids_stands_for_every_row(family_model):
    model_type, model = family_model
    model = model.double().requires_grad_(False)
    batch = two_rows(model_type)
    positions = 2 * torch.arange(batch["input_ids"].shape[1])[None]
    model.model.language_model.register_forward_pre_hook(
        lambda _, arguments, named: (arguments, named | {"position_ids": positions}), with_kwargs=True
    )
    partition = partition_of(model, family_of(model_type))
    structure = examine(model, partition, batch)
    assert structure.unpadded
    assert_pefts(model, partition, structure, batch, [(1, 2)])


@pytest.mark.parametrize("family_model", ["gemma3"], indirect=True)
def test_what_holds_for_text_is_not_taken_for_granted_where_images_are(family_model):
    """Validated on text alone, where padding could be left out; trained on an image, where it could not."""
    model_type, model = family_model
    model = model.double().requires_grad_(False)
    batch = two_rows(model_type)
    text = {name: batch[name][1:, -3:] for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        expected = token_losses(model, batch).mean()
    result = train_pack(
        model,
        partition_of(model, family_of(model_type)),
        [PackRun(RankPair(2, 2), 0)],
        train_steps=lambda done: [[batch]][done:],
        validation=lambda: [(text, ["text"])],
        recipe=Recipe(dtype="float64"),
        horizon=1,
        checkpoint_steps=[1],
    )
    # Fresh adapters change nothing.
    assert result.runs[0].checkpoints[0].train_loss == pytest.approx(float(expected), rel=1e-8)


def assert_pefts(model, partition, structure, batch, pairs):
    """Hold losses and gradients of two passes over `batch` against PEFT's; returns the batch as it was packed."""
    pairs = [RankPair(*pair) for pair in pairs]
    layouts = [layout_of(partition, pair) for pair in pairs]
    generator = torch.Generator().manual_seed(0)
    weights = [initial_weights(model, partition, pair, 0) for pair in pairs]
    weights = [w + 0.1 * torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]
    # Rows of shared matrices, as in training, so that members of equal rank go through one product.
    weights_by_group, gradients = (zero_vectors(layouts, weights[0].device, weights[0].dtype) for _ in range(2))
    for layout, flat, vectors in zip(layouts, weights, weights_by_group, strict=True):
        for group, value in by_group(flat, layout).items():
            vectors[group].copy_(value)
    packed = pack_batch(batch, unpadded=structure.unpadded)
    for _ in range(2):  # the second pass of a frozen encoder reads the features that the first one kept
        for vector in (vector for gradient in gradients for vector in gradient.values()):
            vector.zero_()
        with patched(model, partition, structure):
            losses = adapter_batch_losses(
                model, Pass(make_adapter_batch(layouts, weights_by_group, gradients), packed)
            ).mean(dim=1)
            losses.sum().backward()
        for pair, layout, parts, gradient, loss in zip(
            pairs, layouts, weights_by_group, gradients, losses.tolist(), strict=True
        ):
            expected_loss, expected = peft_gradients(model, partition, pair, parts, layout, batch)
            assert loss == pytest.approx(float(expected_loss), rel=1e-8)
            for slot in layout.slots:
                a, b = expected[slot.layer.name]
                torch.testing.assert_close(slot.a(gradient), a, rtol=1e-5, atol=1e-8)
                torch.testing.assert_close(slot.b_transposed(gradient), b.T, rtol=1e-5, atol=1e-8)
    return packed


def peft_gradients(model, partition, pair, parts, layout, batch):
    wrapped = add_adapters(model, partition, pair, seed=0)
    try:
        named = dict(wrapped.named_parameters())
        with torch.no_grad():
            for slot in layout.slots:
                named[PEFT_A.format(slot.layer.name)].copy_(slot.a(parts))
                named[PEFT_B.format(slot.layer.name)].copy_(slot.b_transposed(parts).T)
        loss = token_losses(wrapped, batch).mean()
        loss.backward()
        names = [slot.layer.name for slot in layout.slots]
        return loss.detach(), {n: (named[PEFT_A.format(n)].grad, named[PEFT_B.format(n)].grad) for n in names}
    finally:
        remove_adapters(wrapped)
