"""Where each model family keeps its modality encoder (ME), projector and LLM.

Module paths are those of transformers 5 under `AutoModelForImageTextToText`. A path names a module;
everything below it belongs to the group, except what a more specific entry claims (Qwen's projector,
"merger", lies inside its vision tower).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Module paths of one model type.

    me, llm: path of the vision tower and of the language model.
    projector: paths of what maps ME features to LLM embeddings.
    unused: regular expressions of linear layers that the forward pass never reaches, so never adapted
        (SigLIP's attention-pooling head, when the model reads patch features).
    """

    me: str
    projector: tuple[str, ...]
    llm: str
    unused: tuple[str, ...] = ()


_SIGLIP_POOLING = r"model\.vision_tower\.(vision_model\.)?head\..*"
_QWEN = Family(me="model.visual", projector=("model.visual.merger",), llm="model.language_model")
_IDEFICS = Family(me="model.vision_model", projector=("model.connector",), llm="model.text_model")
_TOWER = Family(
    me="model.vision_tower",
    projector=("model.multi_modal_projector",),
    llm="model.language_model",
    unused=(_SIGLIP_POOLING,),
)

FAMILIES: dict[str, Family] = {
    "gemma3": _TOWER,  # its projector multiplies by a bare parameter: no linear layer in it
    "idefics3": _IDEFICS,
    "internvl": _TOWER,
    "llava_onevision": _TOWER,
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": Family(
        me="model.visual",
        projector=("model.visual.merger", "model.visual.deepstack_merger_list"),
        llm="model.language_model",
    ),
    "smolvlm": _IDEFICS,
}


EXAMPLE = r"""family:
  me: model.vision_tower                      # the vision encoder
  projector: [model.multi_modal_projector]    # [] if it has no linear layers; may lie inside `me`
  llm: model.language_model
  unused: ['model\.vision_tower\.head\..*']    # regular expressions of layers that no logit depends on, or []"""
"""A description of a model that is not in the table, as a study file holds it."""


def family_of(model_type: str) -> Family:
    """Return the entry of `model_type` (`config.model_type`).

    Raises:
        ValueError: the type is not in the table.
    """
    if model_type not in FAMILIES:
        raise ValueError(
            f"model type {model_type!r} is not known: MARS knows {', '.join(sorted(FAMILIES))}. "
            f"Describe it in the study file, with the paths that model.named_modules() gives:\n{EXAMPLE}"
        )
    return FAMILIES[model_type]
