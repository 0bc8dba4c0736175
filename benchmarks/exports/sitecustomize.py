"""For the Python environments of other tools, on a machine without a GPU (benchmarks/exports_run.py puts it there).

PyPI's torchvision beside a CPU build of PyTorch: its compiled operators do not load, and nothing here calls them. Where
MARS_DUMP names a file, every batch that transformers' Trainer trains on is written to it, as lines of JSON.
"""

import importlib.util
import io
import json
import os
import pathlib
import re
from typing import Any


def _declare_operators() -> None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        return
    import torch

    source = pathlib.Path(spec.origin).with_name("_meta_registrations.py").read_text()
    for name in {one or other for one, other in re.findall(r"register_meta\(\"(\w+)\"\)|torchvision::(\w+)", source)}:
        torch.library.define(f"torchvision::{name}", "() -> ()")
    _decode_by_pil()


def _decode_by_pil() -> None:
    """PNG files, which torchvision's own extension would decode."""
    import numpy
    import torch
    import torchvision.io
    from PIL import Image

    def decode_image(source: Any, *arguments: Any, **options: Any) -> Any:
        file = io.BytesIO(source.numpy().tobytes()) if isinstance(source, torch.Tensor) else source
        return torch.from_numpy(numpy.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)

    torchvision.io.decode_image = decode_image


def _dump_batches(file: str) -> None:
    from transformers import Trainer

    step = Trainer.training_step

    def training_step(self: Any, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        kept = {name: inputs[name].tolist() for name in ("input_ids", "attention_mask", "labels") if name in inputs}
        with pathlib.Path(file).open("a") as out:
            out.write(json.dumps(kept) + "\n")
        return step(self, model, inputs, *arguments, **options)

    Trainer.training_step = training_step


try:
    _declare_operators()
    if os.environ.get("MARS_DUMP"):
        _dump_batches(os.environ["MARS_DUMP"])
except Exception as error:  # noqa: BLE001 - a tool must start whatever happens here; what is missing shows in the record
    print(f"sitecustomize: {error!r}")
