import torch
from transformers import LlavaOnevisionForConditionalGeneration

from mars_core.demo import build_demo_data, demo_backbone_path
from mars_core.evaluation.answer_loss import token_losses
from mars_core.models.processor import load_processor

FOLDER = demo_backbone_path()
TURNS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour is the ground?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
]


def model():
    return LlavaOnevisionForConditionalGeneration.from_pretrained(FOLDER).eval()


def test_checkpoint_is_small_and_has_no_pickle():
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "chat_template.jinja"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8 * 1024**2


def test_it_has_the_parts_of_llava_onevision_at_about_a_million_parameters():
    network = model()
    assert 0.8e6 < network.num_parameters() < 1.6e6
    assert network.config.vision_config.model_type == "siglip_vision_model"
    assert network.config.text_config.model_type == "qwen2"
    assert not hasattr(network.model.vision_tower, "head")
    assert network.lm_head.weight is network.get_input_embeddings().weight


def test_chat_template_takes_strings_and_typed_blocks():
    processor = load_processor(FOLDER)
    text = processor.apply_chat_template(TURNS, tokenize=False)
    assert text == (
        "<|im_start|>user\n<image>\nWhat colour is the ground?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
    )
    plain = [
        {"role": "user", "content": "<image>\nWhat colour is the ground?"},
        {"role": "assistant", "content": "red"},
    ]
    assert processor.apply_chat_template(plain, tokenize=False) == text
    prompt = processor.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True)
    assert text == prompt + "red<|im_end|>\n"


def test_it_answers_about_a_picture_of_the_demo(tmp_path):
    from PIL import Image

    data = build_demo_data(tmp_path / "data", n_train=1, n_validation=1, n_test=1)
    processor = load_processor(FOLDER)
    text = processor.apply_chat_template(TURNS, tokenize=False)
    picture = Image.open(next(data.images.iterdir()))
    inputs = processor(text=[text], images=[picture], return_tensors="pt")
    labels = inputs["input_ids"].clone()
    losses = token_losses(model(), {**inputs, "labels": labels})
    assert torch.isfinite(losses).all()


def test_special_tokens_are_single_and_agree_with_the_configuration():
    processor, config = load_processor(FOLDER), model().config
    tokenizer = processor.tokenizer
    assert tokenizer.convert_tokens_to_ids("<image>") == config.image_token_id
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id == config.text_config.pad_token_id
    assert len(tokenizer) == config.text_config.vocab_size
    assert tokenizer.decode(tokenizer.encode("Wörter, 図 and 🍎")) == "Wörter, 図 and 🍎"
