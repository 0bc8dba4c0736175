"""Rows with sounds: read, checked, encoded and counted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from mars_core.data.check import check_samples
from mars_core.data.encode import encode_sample
from mars_core.data.hashing import data_hash
from mars_core.data.lengths import TokenCounter
from mars_core.data.readers import read_rows, read_samples
from mars_core.data.records import PathSound
from mars_core.data.sounds import load_sound
from mars_core.models.processor import load_processor
from tests.mars_core.small_hearing_model import WORDS, write_hearing_model, write_spoken_rows


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hearing")
    return load_processor(write_hearing_model(folder / "model"))


@pytest.fixture
def rows(tmp_path):
    return write_spoken_rows(tmp_path, "train", range(8000, 8001))


@pytest.mark.parametrize(
    ("stored", "scale"), [(np.int16, 2**15), (np.int32, 2**31), (np.float32, 1), (np.uint8, 2**7)], ids=str
)
def test_a_tone_is_the_same_in_every_format_at_another_rate(tmp_path, stored, scale):
    tone = 0.5 * np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000)
    samples = tone * (scale if scale == 1 else scale - 1) + (128 if stored is np.uint8 else 0)
    wavfile.write(
        tmp_path / "tone.wav", 16_000, np.stack([samples.round() if scale > 1 else samples] * 2, 1).astype(stored)
    )
    heard = load_sound(PathSound("tone.wav", tmp_path), 8_000)
    assert len(heard) == 8_000
    expected = 0.5 * np.sin(2 * np.pi * 200 * np.arange(8_000) / 8_000)
    # Eight bits round by 1/256; the filter of the resampling needs some samples at either end.
    np.testing.assert_allclose(heard[100:-100], expected[100:-100], atol=0.01)


def test_what_is_no_wav_file_is_a_bad_row_with_the_remedy(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"ID3 an MP3 file")
    talk = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A word."}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"audio": name, "messages": talk} for name in ("a.wav", "none.wav")]))
    report = check_samples(read_rows(path))
    unreadable, missing = map(str, report.problems)
    assert "unreadable sound 'a.wav'" in unreadable
    assert "give a WAV file" in unreadable
    assert "missing sound 'none.wav'" in missing


def test_what_is_said_counts_in_the_hash_of_the_data(rows):
    samples = read_samples(rows)
    before = data_hash(samples)
    (rows.parent / "sounds" / "cat-8000.wav").write_bytes((rows.parent / "sounds" / "dog-8000.wav").read_bytes())
    assert data_hash(samples) != before


def test_a_sound_stands_where_the_template_puts_it_and_the_answer_alone_is_trained(rows, hearing):
    sample = read_samples(rows)[0]
    assert next(iter(sample.turns)).text == "<audio>\nWhich word is it?"
    encoded = encode_sample(sample, hearing)
    trained = encoded.input_ids[encoded.labels != -100]
    assert hearing.tokenizer.decode(trained) == f"{WORDS[0]}<|im_end|>"
    sounds = int((encoded.input_ids == hearing.audio_token_id).sum())
    # Qwen2-Audio's own formula: two convolutions, the second of stride 2, then a pooling by 2.
    frames = int(encoded.image_inputs["feature_attention_mask"].sum())
    assert sounds == ((frames - 1) // 2 + 1 - 2) // 2 + 1
    assert TokenCounter(hearing)(sample) == len(encoded)
    assert encoded.image_inputs["input_features"].abs().sum() > 0
    assert isinstance(encoded.image_inputs["input_features"], torch.Tensor)


def test_a_model_that_only_sees_refuses_sounds(rows, shared_base):
    with pytest.raises(ValueError, match=r"the row has a sound, and LlavaOnevisionProcessor takes none"):
        encode_sample(read_samples(rows)[0], shared_base.processor)


def test_without_sounds_the_marker_is_text(tmp_path):
    path = tmp_path / "rows.json"
    talk = [{"role": "user", "content": "What is <audio> in HTML?"}, {"role": "assistant", "content": "A player."}]
    path.write_text(json.dumps([{"messages": talk}]))
    assert not check_samples(read_rows(path)).problems
