"""Save a network that was trained or merged as a whole checkpoint, with the settings its base checkpoint has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.utils import cached_file

GENERATION_CONFIG = "generation_config.json"


def save_network(network: Any, model_id: str, folder: Path) -> None:
    """Write weights, configuration and generation settings into `folder`; `network` stays as it is.

    The cache setting and the generation settings are those of checkpoint `model_id`, a local folder or a hub id in the
    local cache: `load_base` switches the cache off, which whoever generates with the result wants on.
    """
    generation = cached_file(model_id, GENERATION_CONFIG, _raise_exceptions_for_missing_entries=False)
    with _published_cache_setting(network, model_id):
        if generation is None:
            network.save_pretrained(str(folder))
            return
        with _plain_generation(network):
            network.save_pretrained(str(folder))
    shutil.copyfile(generation, folder / GENERATION_CONFIG)


@contextmanager
def _published_cache_setting(network: Any, model_id: str) -> Iterator[None]:
    original = json.loads(Path(cached_file(model_id, "config.json")).read_text(encoding="utf-8"))
    before = dict(vars(network.config))
    if "use_cache" in original:
        network.config.use_cache = original["use_cache"]
    elif "use_cache" in before:
        del network.config.use_cache
    try:
        yield
    finally:
        if "use_cache" in before:
            network.config.use_cache = before["use_cache"]


@contextmanager
def _plain_generation(network: Any) -> Iterator[None]:
    # transformers refuses to save some settings that published checkpoints have, so that their file is copied instead.
    before = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = before
