"""Rebuild the checkpoint that ships with the demo: `python -m mars_core.demo.build_backbone --out FOLDER`."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mars_core.demo.architecture import DEMO_SHAPE, Shape, make_model, make_processor, train_tokenizer
from mars_core.demo.data import is_asked_about
from mars_core.demo.drawings import load_drawings
from mars_core.demo.pretrain import (
    Course,
    Report,
    as_chat,
    grey_pictures,
    pretrain_llm,
    pretrain_projector,
    pretrain_tower,
)
from mars_core.demo.text import sample_documents
from mars_core.models.processor import add_video_part

_TOKENIZER_DOCUMENTS = 20_000


@dataclass(frozen=True)
class PretrainingPlan:
    """How long each part is pre-trained."""

    tower_steps: int = 500
    tower_batch: int = 48
    tower_lr: float = 1e-3
    llm_steps: int = 600
    llm_batch: int = 24
    llm_lr: float = 3e-3
    projector_steps: int = 250
    projector_batch: int = 24
    projector_lr: float = 5e-4
    seed: int = 0


def build_backbone(out: Path, plan: PretrainingPlan, report: Report, shape: Shape = DEMO_SHAPE) -> None:
    """Pre-train the parts, join them, and save model and processor in `out`."""
    torch.manual_seed(plan.seed)
    drawings = load_drawings()
    unused = [drawing for drawing in drawings if not is_asked_about(drawing)]
    names = [drawing.name.replace("_", " ") for drawing in drawings]
    tokenizer = train_tokenizer(_tokenizer_texts(names, plan.seed))
    processor = make_processor(tokenizer)
    model = make_model(tokenizer, shape)
    towers = Course(plan.tower_steps, plan.tower_batch, plan.tower_lr, plan.seed)
    pretrain_tower(model.model.vision_tower, grey_pictures(unused), towers, report)
    llms = Course(plan.llm_steps, plan.llm_batch, plan.llm_lr, plan.seed)
    pretrain_llm(model, tokenizer, names, llms, report)
    projectors = Course(plan.projector_steps, plan.projector_batch, plan.projector_lr, plan.seed)
    pretrain_projector(model, processor, unused, projectors, report)
    save_checkpoint(model, processor, out)


def save_checkpoint(model: Any, processor: Any, out: Path) -> None:
    """Write model (safetensors) and processor to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    add_video_part(out)
    for path in out.iterdir():
        path.chmod(0o644)


def _tokenizer_texts(names: Sequence[str], seed: int) -> list[str]:
    rng = random.Random(f"tokenizer-{seed}")
    return [as_chat(document) for document in sample_documents(names, _TOKENIZER_DOCUMENTS, rng)]


def _print_report(part: str, step: int, steps: int, loss: float) -> None:
    if step % 50 == 0 or step == steps:
        print(f"{part}: step {step}/{steps}, loss {loss:.3f}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "backbone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    build_backbone(options.out, PretrainingPlan(seed=options.seed), _print_report)


if __name__ == "__main__":
    main()
