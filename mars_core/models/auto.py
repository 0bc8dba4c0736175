"""The class of transformers that a checkpoint of a type loads with."""

from __future__ import annotations

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
