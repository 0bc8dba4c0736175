"""Where a checkpoint keeps its modules: from the table, or found on a narrow copy of its architecture.

The copy has the checkpoint's configuration with small widths and random weights, and is fed by the checkpoint's own
processor, so nothing is assumed about the inputs and no weights are read.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig

from mars_core.models.auto import auto_class, hears_only
from mars_core.models.families import FAMILIES, Family, not_known
from mars_core.models.finding import Batch, Undecided, Unusable, find_family, guess_family
from mars_core.models.narrow import narrow
from mars_core.models.processor import load_processor

PICTURE = (96, 64)
LARGEST_COPY = 500_000_000
QUESTION = "What does this picture show?"
SECONDS = 0.5
HEARD = "What is said?"
_FAULTS = (OSError, ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, ImportError)


def recognise(model: str, model_type: str, *, trust_remote_code: bool = False) -> Family:
    """Where checkpoint `model`, a folder or a hub id, keeps its modules.

    Raises:
        ValueError: the type is not in the table, and its modules could not be found; the message holds the best guess
            as a description to correct.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        return _found(model, config.to_json_string(), trust_remote_code)
    except Unusable as unusable:
        raise ValueError(f"model type {model_type!r} cannot be fine-tuned with LoRA here: {unusable}") from unusable
    except Undecided as undecided:
        raise ValueError(not_known(model_type, str(undecided), undecided.guess)) from undecided


@lru_cache(maxsize=16)
def _found(model: str, settings: str, trust_remote_code: bool) -> Family:
    """Found once for a configuration (`settings`): commands ask several times."""
    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    whole = _built(config, "meta", trust_remote_code)
    guess = guess_family(whole)
    try:
        processor = load_processor(model, trust_remote_code=trust_remote_code)
        _check_size(_built(narrow(config), "meta", trust_remote_code), guess)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            copy = _built(narrow(config), "cpu", trust_remote_code)
        ask = question_about_a_sound if hears_only(config.model_type) else question_about_a_picture
        return find_family(copy, ask(processor))
    except Undecided:
        raise
    except _FAULTS as error:
        raise Undecided(f"a narrow copy of it could not be tried ({_first_line(error)})", guess) from error


def _check_size(copy: Any, guess: Family) -> None:
    size = sum(weight.numel() for weight in copy.parameters())
    if size > LARGEST_COPY:
        raise Undecided(f"a narrow copy of it would still have {size:,} parameters", guess)


def _built(config: Any, device: str, trust_remote_code: bool) -> Any:
    try:
        with torch.device(device):
            network = auto_class(config.model_type).from_config(config, trust_remote_code=trust_remote_code)
    except _FAULTS as error:
        if "Unrecognized configuration class" in str(error):
            raise Undecided("transformers has no class for it that reads images and text", None) from error
        raise Undecided(f"transformers cannot build it ({_first_line(error)})", None) from error
    return network.requires_grad_(False).eval()


def question_about_a_picture(processor: Any) -> Batch:
    """Model inputs of one question about one plain picture, as the processor makes them."""
    picture = Image.linear_gradient("L").resize(PICTURE).convert("RGB")
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    else:
        text = f"{processor.image_token}{QUESTION}"
    try:
        inputs = processor(images=[picture], text=[text], return_tensors="pt")
    except (ValueError, TypeError, IndexError):
        inputs = processor(images=[[picture]], text=[text], return_tensors="pt")
    return {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}


def question_about_a_sound(processor: Any) -> Batch:
    """Model inputs of one question about half a second of noise, as the processor makes them."""
    rate = processor.feature_extractor.sampling_rate
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, int(SECONDS * rate)).astype(np.float32)
    if getattr(processor, "chat_template", None):
        content = [{"type": "audio"}, {"type": "text", "text": HEARD}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    else:
        text = f"{processor.audio_token}{HEARD}"
    inputs = processor(audio=[noise], text=[text], sampling_rate=rate, return_tensors="pt")
    return {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
