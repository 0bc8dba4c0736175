"""Build a checkpoint from its parts, and align its projector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from mars_core.data.dataset import EncodedDataset
from mars_core.data.lengths import TokenCounter
from mars_core.data.readers import read_samples
from mars_core.models.assemble import Assembled, assemble
from mars_core.models.processor import add_video_part
from mars_core.records import Record
from mars_core.training.align import align_projector
from tasks.inputs.base_model import resolve_device
from tasks.running.progress import progress_bar
from tasks.storage.files import replacing_folder


@dataclass(frozen=True)
class Alignment:
    """How the projector is aligned.

    captions: LLaVA JSON or Parquet. images: folder of its images, None for the file's. steps: optimizer steps of
    `batch_size` samples. max_tokens: longer samples are left out.
    """

    captions: str
    images: str | None = None
    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 1e-3
    max_tokens: int = 2048


@dataclass(frozen=True)
class Aligned(Record):
    """How a projector was aligned. too_long: captions left out. losses: means over the first and last tenth."""

    samples: int
    too_long: int
    steps: int
    first_loss: float
    last_loss: float


@dataclass(frozen=True)
class Checkpoint(Record):
    """An assembled checkpoint; aligned: None where no captions were given."""

    checkpoint: str
    parameters: int
    aligned: Aligned | None


def assemble_checkpoint(
    vision: str, llm: str, out: Path, *, grid: int, seed: int, device: str, alignment: Alignment | None
) -> Checkpoint:
    """Write a LLaVA-OneVision checkpoint with its processor to `out`; returns what was done.

    Raises:
        ValueError: a part cannot be used, the captions are faulty, or `out` exists already.
    """
    if out.exists():
        raise ValueError(f"{out} exists already: give the path of a folder to be made")
    where = resolve_device(device)
    assembled = assemble(vision, llm, grid=grid, seed=seed)
    parameters = sum(parameter.numel() for parameter in assembled.model.parameters())
    aligned = None if alignment is None else _align(assembled, alignment, seed, where)
    with replacing_folder(out) as temporary:
        assembled.model.save_pretrained(temporary)
        assembled.processor.save_pretrained(temporary)
        add_video_part(temporary)
    return Checkpoint(str(out), parameters, aligned)


def _align(assembled: Assembled, alignment: Alignment, seed: int, device: torch.device) -> Aligned:
    samples = read_samples(alignment.captions, alignment.images)
    count = TokenCounter(assembled.processor)
    usable = [sample for sample in samples if count(sample) <= alignment.max_tokens]
    if not usable:
        raise ValueError(f"none of the {len(samples)} captions has at most {alignment.max_tokens} tokens")
    model = assembled.model.to(device)
    with progress_bar("aligning the projector", alignment.steps) as advance:
        losses = align_projector(
            model,
            [*model.model.multi_modal_projector.parameters(), model.model.image_newline],
            EncodedDataset(usable, assembled.processor),
            pad_token_id=assembled.processor.tokenizer.pad_token_id,
            steps=alignment.steps,
            batch_size=alignment.batch_size,
            learning_rate=alignment.learning_rate,
            seed=seed,
            on_step=advance,
        )
    model.cpu()
    tenth = max(1, len(losses) // 10)
    return Aligned(
        samples=len(usable),
        too_long=len(samples) - len(usable),
        steps=len(losses),
        first_loss=sum(losses[:tenth]) / tenth,
        last_loss=sum(losses[-tenth:]) / tenth,
    )
