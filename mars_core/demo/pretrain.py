"""Pre-train the parts of the demo backbone on data of another domain, one part at a time.

Tower: grey drawings that the demo never shows, by contrasting views of the same drawing (no words).
LLM: text alone. Projector: names of those grey drawings, with tower and LLM frozen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from mars_core.demo.drawings import Drawing
from mars_core.demo.scenes import IMAGE_SIZE
from mars_core.demo.text import Document, sample_documents

Report = Callable[[str, int, int, float], None]
"""Called with (part, step, steps, loss)."""

_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)


def grey_pictures(drawings: Sequence[Drawing]) -> npt.NDArray[np.float32]:
    """Luminance of each drawing on white, shape (n, height, width), in 0..1."""
    pixels = np.stack([drawing.pixels for drawing in drawings]).astype(np.float32) / 255
    luminance = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    alpha = pixels[..., 3]
    grey: npt.NDArray[np.float32] = luminance * alpha + (1 - alpha)
    return grey


def pretrain_tower(
    tower: nn.Module, grey: npt.NDArray[np.float32], *, steps: int, batch: int, lr: float, seed: int, report: Report
) -> None:
    """Contrast two random views of each grey drawing (InfoNCE over the batch, temperature 0.1)."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.from_numpy(grey)[:, None]
    width = int(tower.config.hidden_size)  # type: ignore[union-attr]
    head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 64))
    parameters = [*tower.parameters(), *head.parameters()]

    def loss_of() -> Tensor:
        chosen = torch.randint(len(pictures), (batch,), generator=generator)
        views = torch.cat([_views(pictures[chosen], generator), _views(pictures[chosen], generator)])
        features = tower(pixel_values=_normalise(views)).last_hidden_state.mean(1)
        return _info_nce(functional.normalize(head(features), dim=-1))

    _train(parameters, loss_of, steps=steps, lr=lr, part="tower", report=report)


def pretrain_llm(
    model: Any, tokenizer: Any, names: Sequence[str], *, steps: int, batch: int, lr: float, seed: int, report: Report
) -> None:
    """Next-token prediction on conversations without pictures."""
    rng = random.Random(f"llm-{seed}")
    parameters = [*model.model.language_model.parameters()]
    documents = _endless_batches(lambda: sample_documents(names, batch, rng))

    def loss_of() -> Tensor:
        encoded = tokenizer([as_chat(document) for document in next(documents)], padding=True, return_tensors="pt")
        return _next_token_loss(model, encoded["input_ids"], encoded["attention_mask"])

    _train(parameters, loss_of, steps=steps, lr=lr, part="llm", report=report)


def pretrain_projector(
    model: Any,
    processor: Any,
    drawings: Sequence[Drawing],
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    report: Report,
) -> None:
    """Align the projector on the names of grey drawings; tower and LLM stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.from_numpy(grey_pictures(drawings))[:, None]
    slots = processor.image_token * _image_tokens(processor)
    texts = [
        as_chat([_user(f"{slots}\nName the drawing."), _assistant(drawing.name.replace("_", " "))])
        for drawing in drawings
    ]
    model.requires_grad_(False)
    projector = [*model.model.multi_modal_projector.parameters(), model.model.image_newline]
    for parameter in projector:
        parameter.requires_grad_(True)

    def loss_of() -> Tensor:
        chosen = torch.randint(len(drawings), (batch,), generator=generator)
        pixels = _normalise(_views(pictures[chosen], generator))
        encoded = processor.tokenizer([texts[i] for i in chosen.tolist()], padding=True, return_tensors="pt")
        tiles = torch.stack([pixels, pixels], dim=1)
        sizes = torch.full((batch, 2), IMAGE_SIZE)
        ids = encoded["input_ids"]
        logits = model(
            input_ids=ids, attention_mask=encoded["attention_mask"], pixel_values=tiles, image_sizes=sizes
        ).logits
        return _answer_loss(logits, ids, encoded["attention_mask"], int(processor.image_token_id))

    _train(projector, loss_of, steps=steps, lr=lr, part="projector", report=report)
    model.requires_grad_(True)


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


def _next_token_loss(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return functional.cross_entropy(logits[mask[:, 1:] == 1], ids[:, 1:][mask[:, 1:] == 1])


def _answer_loss(logits: Tensor, ids: Tensor, mask: Tensor, image_token: int) -> Tensor:
    """Next-token loss over the text after the picture."""
    keep = (mask[:, 1:] == 1) & ((ids == image_token).cumsum(1)[:, 1:] == (ids == image_token).sum(1, keepdim=True))
    keep &= ids[:, 1:] != image_token
    return functional.cross_entropy(logits[:, :-1][keep], ids[:, 1:][keep])


def _endless_batches(draw: Callable[[], list[Document]]) -> Iterable[Any]:
    while True:
        yield draw()


def _train(
    parameters: Sequence[nn.Parameter],
    loss_of: Callable[[], Tensor],
    *,
    steps: int,
    lr: float,
    part: str,
    report: Report,
) -> None:
    """AdamW with 5% warm-up and cosine decay."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmup_cosine(step, steps))
    for step in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report(part, step + 1, steps, loss.item())


def _warmup_cosine(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
