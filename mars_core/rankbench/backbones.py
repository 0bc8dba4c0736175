"""Backbones of different balance between vision encoder and LLM, pre-trained as the demo's is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mars_core.demo.architecture import Shape
from mars_core.demo.build_backbone import PretrainingPlan, build_backbone
from mars_core.demo.pretrain import Report
from mars_core.models.loading import Base, load_base
from mars_core.rankbench.cells import Backbone

SHAPES: dict[Backbone, Shape] = {
    "even": Shape(tower_layers=3, tower_width=64, llm_layers=3, llm_width=64),
    "llm": Shape(tower_layers=2, tower_width=48, llm_layers=4, llm_width=96),
    "vision": Shape(tower_layers=4, tower_width=96, llm_layers=2, llm_width=48),
}
WEIGHTS = "model.safetensors"


def make_backbone(name: Backbone, folder: Path, report: Report) -> None:
    """Pre-train a backbone and save it in `folder`, weights in half precision."""
    build_backbone(folder, PretrainingPlan(), report, SHAPES[name])
    _halve(folder)


def _halve(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor.half() for name, tensor in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def load_backbone(folder: Path) -> Base:
    """A backbone in single precision on the CPU."""
    return load_base(str(folder), device=torch.device("cpu"), dtype=torch.float32)


def weights_digest(folder: Path) -> str:
    """Short hash of a backbone's weights: runs of two backbones are never told as one cell."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:16]
