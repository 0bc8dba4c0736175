"""Pre-train the parts of the demo backbone on data of another domain, one part at a time.

Tower: grey drawings that the demo never shows, by contrasting views of the same drawing (no words).
LLM: text alone. Projector: names of those grey drawings, with tower and LLM frozen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from mars_core.demo.drawings import Drawing
from mars_core.demo.scenes import IMAGE_SIZE
from mars_core.demo.text import LOOKS, Document, asked_about, sample_documents

Report = Callable[[str, int, int, float], None]
"""Called with (part, step, steps, loss)."""

_LEVELS = ((0.48, 0.57), (0.9, 1.1), (0.075, 0.125))  # lower and upper bound of the middle word of each of LOOKS
_TEXT_WEIGHT = 0.1  # of the loss on all text beside that on answers
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Course:
    """How long a part is trained: steps of `batch` samples, lr: peak learning rate."""

    steps: int
    batch: int
    lr: float
    seed: int


def grey_pictures(drawings: Sequence[Drawing]) -> npt.NDArray[np.float32]:
    """Luminance of each drawing on white, shape (n, height, width), in 0..1."""
    pixels = np.stack([drawing.pixels for drawing in drawings]).astype(np.float32) / 255
    luminance = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    alpha = pixels[..., 3]
    return (luminance * alpha + (1 - alpha)).astype(np.float32)


def grey_views(drawings: Sequence[Drawing], generator: torch.Generator) -> Tensor:
    """A random view of each drawing in grey, shape (n, 3, IMAGE_SIZE, IMAGE_SIZE), values about 0..1."""
    return _views(torch.from_numpy(grey_pictures(drawings))[:, None], generator)


def pretrain_tower(tower: Any, grey: npt.NDArray[np.float32], course: Course, report: Report) -> None:
    """Contrast two views of each grey drawing (InfoNCE over the batch), and have every patch tell the looks."""
    generator = torch.Generator().manual_seed(course.seed)
    pictures = torch.from_numpy(grey)[:, None]
    width = int(tower.config.hidden_size)
    contrast = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 64))
    looks = nn.Linear(width, sum(len(words) for words in LOOKS.values()))
    # The patch embedding stays random: trained on grey it would swell and drown colour (cf. MoCo v3, section 4).
    tower.embeddings.requires_grad_(False)
    every = [*tower.parameters(), *contrast.parameters(), *looks.parameters()]
    parameters = [parameter for parameter in every if parameter.requires_grad]

    def loss_of() -> Tensor:
        chosen = torch.randint(len(pictures), (course.batch,), generator=generator)
        views = torch.cat([_views(pictures[chosen], generator), _views(pictures[chosen], generator)])
        features = tower(pixel_values=_normalise(views)).last_hidden_state
        same = _info_nce(functional.normalize(contrast(features.mean(1)), dim=-1))
        return same + _looks_loss(looks(features), look_levels(views[:, 0]))

    train_part(parameters, loss_of, course, part="tower", report=report)
    tower.requires_grad_(True)


def pretrain_llm(model: Any, tokenizer: Any, names: Sequence[str], course: Course, report: Report) -> None:
    """Next-token prediction on conversations without pictures."""
    rng = random.Random(f"llm-{course.seed}")
    parameters = [*model.model.language_model.parameters()]

    def loss_of() -> Tensor:
        encoded = tokenizer(
            [as_chat(document) for document in sample_documents(names, course.batch, rng)],
            padding=True,
            return_tensors="pt",
        )
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        logits = model(input_ids=ids, attention_mask=mask).logits
        return answer_loss(logits, ids, tokenizer) + _TEXT_WEIGHT * _text_loss(logits, ids, mask)

    train_part(parameters, loss_of, course, part="llm", report=report)


def pretrain_projector(model: Any, processor: Any, drawings: Sequence[Drawing], course: Course, report: Report) -> None:
    """Align the projector on the names of grey drawings; tower and LLM stay as they are."""
    generator = torch.Generator().manual_seed(course.seed)
    rng = random.Random(f"projector-{course.seed}")
    pictures = torch.from_numpy(grey_pictures(drawings))[:, None]
    slots = processor.image_token * _image_tokens(processor)
    model.requires_grad_(False)
    projector = [*model.model.multi_modal_projector.parameters(), model.model.image_newline]
    for parameter in projector:
        parameter.requires_grad_(True)

    def loss_of() -> Tensor:
        chosen = torch.randint(len(drawings), (course.batch,), generator=generator)
        views = _views(pictures[chosen], generator)
        documents = [asked_about(looks, slots, rng) for looks in describe_looks(views[:, 0])]
        pixels = _normalise(views)
        encoded = processor.tokenizer([as_chat(d) for d in documents], padding=True, return_tensors="pt")
        logits = model(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            pixel_values=torch.stack([pixels, pixels], dim=1),
            image_sizes=torch.full((course.batch, 2), IMAGE_SIZE),
        ).logits
        return answer_loss(logits, encoded["input_ids"], processor.tokenizer)

    train_part(projector, loss_of, course, part="projector", report=report)
    model.requires_grad_(True)


def look_levels(grey: Tensor) -> Tensor:
    """Looks of grey pictures on white (n, height, width), values 0..1: indices into each of LOOKS, shape (n, 3)."""
    ink = 1 - grey
    drawn = ink > 0.05
    shade = ink.sum((1, 2)) / drawn.sum((1, 2)).clamp(min=1)
    height, width = drawn.any(2).sum(1).float(), drawn.any(1).sum(1).float()
    values = (shade, width / height.clamp(min=1), drawn.float().mean((1, 2)))
    levels = [(value > low).long() + (value > high).long() for value, (low, high) in zip(values, _LEVELS, strict=True)]
    return torch.stack(levels, dim=1)


def describe_looks(grey: Tensor) -> list[dict[str, str]]:
    """The looks of grey pictures in words: name -> word of LOOKS."""
    return [
        {name: words[level] for (name, words), level in zip(LOOKS.items(), levels, strict=True)}
        for levels in look_levels(grey).tolist()
    ]


def _looks_loss(scores: Tensor, levels: Tensor) -> Tensor:
    """Cross-entropy, summed over LOOKS, of every patch's scores (n, patches, 9) for levels (n, 3)."""
    parts = torch.split(scores, [len(words) for words in LOOKS.values()], dim=-1)
    patches = scores.shape[1]
    return torch.stack(
        [
            functional.cross_entropy(part.flatten(0, 1), levels[:, k].repeat_interleave(patches))
            for k, part in enumerate(parts)
        ]
    ).sum()


def as_chat(document: Document) -> str:
    """A conversation as ChatML text."""
    return "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in document)


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def _image_tokens(processor: Any) -> int:
    """Slots that one square picture takes: base tile, detail tile, one newline per row of the latter."""
    tokens = int(processor.num_image_tokens)
    return 2 * tokens + math.isqrt(tokens)


def _views(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Random views of grey pictures: shifted, scaled, mirrored, shape (n, 3, IMAGE_SIZE, IMAGE_SIZE) in 0..1."""
    n = len(pictures)
    scale = 1.0 + 1.6 * torch.rand(n, generator=generator)
    mirror = torch.randint(2, (n,), generator=generator) * 2 - 1
    shift = (torch.rand(n, 2, generator=generator) * 2 - 1) * (scale - 0.8)[:, None]
    matrix = torch.zeros(n, 2, 3)
    matrix[:, 0, 0] = scale * mirror
    matrix[:, 1, 1] = scale
    matrix[:, :, 2] = shift
    grid = functional.affine_grid(matrix, [n, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    moved = 1 - functional.grid_sample(1 - pictures, grid, align_corners=False)
    return moved.expand(-1, 3, -1, -1)


def _normalise(pixels: Tensor) -> Tensor:
    return (pixels - _MEAN) / _STD


def _info_nce(features: Tensor, temperature: float = 0.1) -> Tensor:
    """features: two stacked halves, unit rows; row i of one half belongs to row i of the other."""
    n = len(features) // 2
    similarity = features @ features.T / temperature
    similarity = similarity.masked_fill(torch.eye(2 * n, dtype=torch.bool), float("-inf"))
    target = torch.arange(2 * n).roll(n)
    return functional.cross_entropy(similarity, target)


def _text_loss(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Next-token loss over all text."""
    keep = mask[:, 1:] == 1
    return functional.cross_entropy(logits[:, :-1][keep], ids[:, 1:][keep])


def answer_loss(logits: Tensor, ids: Tensor, tokenizer: Any) -> Tensor:
    """Next-token loss over the assistant's turns, end of turn included."""
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))
    turn = (ids == start).cumsum(1)
    since_end = (ids == end).cumsum(1) - (ids == end).long()
    header = (ids == start) | (ids == start).roll(1, 1) | (ids == start).roll(2, 1)
    keep = ((turn % 2 == 0) & (turn > 0) & (since_end == turn - 1) & ~header)[:, 1:]
    return functional.cross_entropy(logits[:, :-1][keep], ids[:, 1:][keep])


def train_part(
    parameters: Sequence[nn.Parameter],
    loss_of: Callable[[], Tensor],
    course: Course,
    *,
    part: str,
    report: Report,
) -> None:
    """AdamW with 5% warm-up and cosine decay."""
    optimizer = torch.optim.AdamW(parameters, lr=course.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmup_cosine(step, course.steps))
    for step in range(course.steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report(part, step + 1, course.steps, loss.item())


def _warmup_cosine(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
