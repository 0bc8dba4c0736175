from __future__ import annotations

import pytest
import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
)

from mars_core.data.collate import collate
from mars_core.data.dataset import EncodedDataset
from mars_core.data.encode import IGNORE, encode_sample

PAD = 0


def llava_model(processor):
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(processor.tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
        image_grid_pinpoints=processor.image_processor.image_grid_pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return LlavaOnevisionForConditionalGeneration(config)


def qwen_model(processor):
    tokenizer = processor.tokenizer
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    return Qwen2VLForConditionalGeneration(config)


MODELS = {"llava": llava_model, "qwen": qwen_model}


@pytest.fixture(params=["llava", "qwen"])
def family(request):
    """(processor, model of the family with random weights)."""
    processor = request.getfixturevalue(request.param)
    torch.manual_seed(0)
    return processor, MODELS[request.param](processor).eval()


@pytest.fixture
def mixed(make_image, sample_of):
    """One wide image, none, two images of other sizes and several turns, one small image."""
    return [
        sample_of("<image>\nWhat is it?", "A dog.", images=(make_image(size=(70, 30)),)),
        sample_of("Hello?", "It is green."),
        sample_of(
            "<image> or <image>?",
            "Left.",
            "And why?",
            "There are three.",
            images=(make_image(size=(20, 60)), make_image(size=(33, 33))),
        ),
        sample_of("<image>\nHow many?", "Three.", images=(make_image(size=(30, 30)),)),
    ]


def answer_nats(model, batch) -> list[float]:
    """Summed cross-entropy of the answer tokens of each row."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.inference_mode():
        logits = model(**inputs).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], ignore_index=IGNORE, reduction="none"
    )
    return losses.sum(dim=1).tolist()


def test_a_mixed_batch_scores_each_sample_as_it_does_alone(family, mixed):
    processor, model = family
    encoded = [encode_sample(sample, processor) for sample in mixed]
    together = answer_nats(model, collate(encoded, PAD))
    alone = [answer_nats(model, collate([item], PAD))[0] for item in encoded]
    assert together == pytest.approx(alone, rel=1e-4)  # padding changes the order of float32 sums


def test_a_batch_of_text_only_samples_has_no_images(family, sample_of):
    processor, model = family
    encoded = [encode_sample(sample_of("Hello?", answer), processor) for answer in ("Yes.", "It is green, yes.")]
    batch = collate(encoded, PAD)
    assert not {"pixel_values", "image_sizes", "image_grid_thw"} & batch.keys()
    assert len(answer_nats(model, batch)) == 2


def test_tokens_are_padded_on_the_right(llava, mixed):
    encoded = [encode_sample(sample, llava) for sample in mixed]
    batch = collate(encoded, pad_token_id=9)
    longest = max(len(item) for item in encoded)
    for row, item in enumerate(encoded):
        length = len(item)
        assert batch["input_ids"][row].tolist() == [*item.input_ids.tolist(), *[9] * (longest - length)]
        assert batch["labels"][row].tolist() == [*item.labels.tolist(), *[IGNORE] * (longest - length)]
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (longest - length)


def test_llava_onevision_images_have_the_shapes_the_model_expects(llava, mixed):
    batch = collate([encode_sample(sample, llava) for sample in mixed], PAD)
    most_tiles = 1 + 2  # 70 x 30 pixels: the whole and a 2 x 1 grid of 32-pixel tiles
    assert batch["pixel_values"].shape == (4, most_tiles, 3, 32, 32)
    assert batch["image_sizes"].tolist() == [[30, 70], [60, 20], [33, 33], [30, 30]]
    assert batch["batch_num_images"].tolist() == [1, 2, 1]


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="empty batch"):
        collate([], PAD)


def test_long_samples_are_dropped_and_counted(llava, mixed):
    lengths = [len(encode_sample(sample, llava)) for sample in mixed]
    limit = sorted(lengths)[-2]
    dataset = EncodedDataset(mixed, llava, max_tokens=limit)
    assert dataset.dropped == 1
    assert [len(item) for item in dataset] == [length for length in lengths if length <= limit]
    assert [item.sample for item in dataset] == list(dataset.samples)
    assert dataset.tasks == ("vqa",) * 3


def test_all_samples_too_long_is_a_mistake(llava, mixed):
    with pytest.raises(ValueError, match="all 4 samples have more than 5 tokens: raise the limit"):
        EncodedDataset(mixed, llava, max_tokens=5)


def test_the_cache_keeps_what_fits(llava, mixed):
    first = EncodedDataset(mixed, llava)[0]
    dataset = EncodedDataset(mixed, llava, cache_bytes=first.nbytes)
    assert dataset[0] is dataset[0]
    assert dataset[2] is not dataset[2]
    assert torch.equal(dataset[2].input_ids, dataset[2].input_ids)


def test_a_data_loader_takes_it(llava, mixed):
    loader = torch.utils.data.DataLoader(
        EncodedDataset(mixed, llava), batch_size=4, collate_fn=lambda items: collate(items, PAD)
    )
    (batch,) = loader
    assert batch["input_ids"].shape[0] == 4


def test_progress_is_told(llava, mixed):
    seen = []
    EncodedDataset(mixed, llava, max_tokens=1000, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
