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
    unused: regular expressions of linear layers that are never adapted: no logit depends on them (SigLIP's
        attention-pooling head, when the model reads patch features), or LoRA cannot adapt them.
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
"""A description of a model whose modules are neither in the table nor found, as a study file holds it."""


def described(family: Family) -> str:
    """A family as the `family` section of a study file."""
    lines = [f"me: {family.me}", f"projector: {_yaml(family.projector)}", f"llm: {family.llm}"]
    return "\n  ".join(["family:", *lines, f"unused: {_yaml(family.unused)}"])


def _yaml(values: tuple[str, ...]) -> str:
    return "[" + ", ".join(f"'{value}'" for value in values) + "]"


def family_of(model_type: str) -> Family:
    """Return the entry of `model_type` (`config.model_type`).

    Raises:
        ValueError: the type is not in the table.
    """
    if model_type not in FAMILIES:
        raise ValueError(not_known(model_type, "its modules were not looked for"))
    return FAMILIES[model_type]


def not_known(model_type: str, reason: str, guess: Family | None = None) -> str:
    """What to tell a user whose model's modules are neither in the table nor found."""
    known = (
        f"model type {model_type!r} is not known: MARS knows {', '.join(sorted(FAMILIES))}, and could not find the "
        f"modules of this one by itself: {reason}. "
    )
    if guess:
        return known + f"Describe it in the study file; this is the best guess, to be corrected:\n{described(guess)}"
    return known + (
        "Choose a model with a vision encoder beside its LLM; if it has one, describe it in the study file, with the "
        f"paths that model.named_modules() gives:\n{EXAMPLE}"
    )
