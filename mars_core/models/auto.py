"""The class of transformers that a checkpoint of a type loads with."""

from __future__ import annotations

import re
from typing import Any

from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)


def hears_only(model_type: str) -> bool:
    """Whether transformers knows a type as one that reads sound, or anything but images, beside text."""
    known = model_type in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    return known and model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def auto_class(model_type: str) -> Any:
    """`AutoModelForImageTextToText`; for a type that only hears, `AutoModelForMultimodalLM`."""
    return AutoModelForMultimodalLM if hears_only(model_type) else AutoModelForImageTextToText


def of_its_tower(text: str, model_type: str) -> str:
    """A text about a model's vision encoder in words that fit the model: about the audio encoder if it only hears.

    Names are left as they are, so that no path, id or command in the text is changed.
    """
    if not hears_only(model_type):
        return text
    return re.sub(r"\b(v|V)ision(\s+)(encoder|rank)", lambda found: _audio(found[1]) + found[2] + found[3], text)


def _audio(initial: str) -> str:
    return "Audio" if initial == "V" else "audio"
