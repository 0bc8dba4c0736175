"""Load a checkpoint's processor without its video part.

transformers' video processors need torchvision and settings of their own, and a processor class that names
a video processor cannot be built without them, even when only images are used. This module loads the same
processor class without its video part; where torchvision is missing, its image part runs on PIL.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
from transformers.utils import cached_file


def load_processor(model: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Return the processor of `model` (a local folder or hub id), image and text parts alone.

    Raises:
        ValueError: the checkpoint has no processor of its own.
    """
    config = AutoConfig.from_pretrained(str(model), trust_remote_code=trust_remote_code)
    processor_class = PROCESSOR_MAPPING[type(config)] if type(config) in PROCESSOR_MAPPING else _named_class(model)
    if processor_class is not None:
        return without_video(processor_class).from_pretrained(str(model), trust_remote_code=trust_remote_code)
    if trust_remote_code:
        return AutoProcessor.from_pretrained(str(model), trust_remote_code=trust_remote_code)
    raise ValueError(
        f"model {str(model)!r} is of type {config.model_type!r}, for which transformers has no "
        "image-and-text processor: choose a vision-language checkpoint"
    )


def _named_class(model: str | Path) -> Any:
    """The class of transformers that the checkpoint's own processor file names, None where there is none."""
    path = cached_file(str(model), "processor_config.json", _raise_exceptions_for_missing_entries=False)
    name = json.loads(Path(path).read_text()).get("processor_class") if path else None
    return processor_class_from_name(name) if name else None


class _NoVideo:
    """Where a video processor would be: SmolVLM's chat path asks it for its settings, images or not."""

    num_frames = None
    fps = None


def without_video(processor_class: type) -> Any:
    """Return `processor_class` less its video processor, under the same name, so that what it saves loads anywhere."""

    def image_and_text_attributes(cls: type) -> list[str]:
        return [name for name in processor_class.get_attributes() if name != "video_processor"]  # type: ignore[attr-defined]

    return type(
        processor_class.__name__,
        (processor_class,),
        {
            "get_attributes": classmethod(image_and_text_attributes),
            "video_processor": _NoVideo,
            "lacks_video": "video_processor" in processor_class.get_attributes(),  # type: ignore[attr-defined]
            "__module__": processor_class.__module__,
        },
    )


def save_processor(processor: Any, model: str | Path, folder: Path) -> None:
    """Save `processor` into `folder`, with the video part of `model`'s own files that it may lack.

    A processor loaded without its video part would otherwise leave a folder that transformers refuses to
    load on a machine that has torchvision.
    """
    processor.save_pretrained(str(folder))
    saved = folder / "processor_config.json"
    if not saved.is_file():
        return
    settings = json.loads(saved.read_text())
    video = _video_settings(model) if getattr(processor, "lacks_video", False) else None
    if video is not None and "video_processor" not in settings:
        saved.write_text(json.dumps(settings | {"video_processor": video}, indent=2, sort_keys=True) + "\n")


def _video_settings(model: str | Path) -> Any:
    """A checkpoint's video settings from where transformers looks for them, in its order; None where there are none."""
    places = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")
    named = {name: _stored_json(model, name) for name in places}
    nested = (named["processor_config.json"] or {}).get("video_processor")
    return nested or named["video_preprocessor_config.json"] or named["preprocessor_config.json"]


def _stored_json(model: str | Path, name: str) -> Any:
    path = cached_file(str(model), name, _raise_exceptions_for_missing_entries=False, local_files_only=True)
    return json.loads(Path(path).read_text()) if path else None


def add_video_part(folder: Path) -> None:
    """Describe a LLaVA-OneVision processor's video part too, without which AutoProcessor does not load the folder where
    torchvision is."""
    path = folder / "processor_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    shared = {key: value for key, value in config["image_processor"].items() if key in _VIDEO_KEYS}
    config["video_processor"] = {**shared, "video_processor_type": "LlavaOnevisionVideoProcessor"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


_VIDEO_KEYS = frozenset(
    {"do_convert_rgb", "do_normalize", "do_rescale", "do_resize"}
    | {"image_mean", "image_std", "resample", "rescale_factor", "size"}
)
