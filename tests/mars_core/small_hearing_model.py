"""A small audio-language model (Qwen2-Audio's own classes, random weights) and rows about recorded words."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from scipy.io import wavfile
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForMultimodalLM,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

SPOKEN = Path(__file__).parents[1] / "sounds"
WORDS = tuple(sorted(file.stem for file in SPOKEN.glob("*.wav")))
_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
_SECONDS, _RATE, _HOP = 2, 8000, 80


def write_hearing_model(folder: Path) -> Path:
    """A checkpoint with its processor: two blocks on either side, sounds of at most two seconds."""
    tokenizer = _tokenizer()
    frames = _SECONDS * _RATE // _HOP
    config = Qwen2AudioConfig(
        audio_config={
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 16,
            "max_source_positions": frames // 2,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForMultimodalLM.from_config(config).save_pretrained(folder)
    listening = WhisperFeatureExtractor(
        feature_size=16, sampling_rate=_RATE, hop_length=_HOP, chunk_length=_SECONDS, n_fft=400
    )
    Qwen2AudioProcessor(listening, tokenizer).save_pretrained(folder)
    return folder


def write_spoken_rows(folder: Path, split: str, speeds: range) -> Path:
    """Every word at every speed (samples a second that the file claims), with the question which word it is."""
    (folder / "sounds").mkdir(parents=True, exist_ok=True)
    rows = []
    for speed in speeds:
        for word in WORDS:
            name = f"sounds/{word}-{speed}.wav"
            wavfile.write(folder / name, speed, wavfile.read(SPOKEN / f"{word}.wav")[1])
            asked = {"role": "user", "content": "Which word is it?"}
            rows.append({"audio": name, "messages": [asked, {"role": "assistant", "content": word}], "task": "words"})
    path = folder / f"{split}.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def _tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*_SPECIALS, *letters))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(_SPECIALS[1:2] + _SPECIALS[3:]),
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
