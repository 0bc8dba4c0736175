"""Backbones of different balance between vision encoder and LLM, whose pictures reach the LLM as few tokens.

Gemma3's classes, small: patch features are averaged to one token before the LLM, so what an answer needs of a picture
must be read off in the vision encoder; adapters of the LLM cannot bring it back. The encoder is pre-trained by linear
heads on its averaged features, then the whole on conversations, both on drawings that no task shows.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from mars_core.demo.architecture import CHAT_TEMPLATE, TURN_END, TURN_START
from mars_core.demo.drawings import DRAWING_COLOURS, load_drawings
from mars_core.demo.pretrain import Course, Report, answer_loss, as_chat, train_part
from mars_core.demo.scenes import IMAGE_SIZE, Scene, by_colour, render_scene
from mars_core.demo.text import Document, sample_documents
from mars_core.models.loading import Base, load_base
from mars_core.rankbench.cells import Backbone
from mars_core.rankbench.world import Turns, ask_all, list_all, sample_alone

WEIGHTS = "model.safetensors"
PATCH = 16
VOCABULARY = 512
PADDING = "<pad>"
IMAGE_START, IMAGE_END, IMAGE_TOKEN = "<start_of_image>", "<end_of_image>", "<image_soft_token>"


@dataclass(frozen=True)
class Shape:
    """Layers and widths of vision encoder and LLM; image_tokens: of a picture, after averaging, a square number."""

    tower_layers: int
    tower_width: int
    llm_layers: int
    llm_width: int
    image_tokens: int = 1


SHAPES: dict[Backbone, Shape] = {
    "even": Shape(tower_layers=2, tower_width=64, llm_layers=2, llm_width=64),
    "llm": Shape(tower_layers=2, tower_width=32, llm_layers=3, llm_width=96),
    "vision": Shape(tower_layers=3, tower_width=96, llm_layers=2, llm_width=48),
}


@dataclass(frozen=True)
class Pretraining:
    """How long a backbone is pre-trained: its vision encoder by linear heads, then the whole.

    scenes: pictures that both see.
    """

    scenes: int = 4096
    tower_steps: int = 500
    tower_batch: int = 48
    whole_steps: int = 500
    batch: int = 24
    lr: float = 2e-3
    seed: int = 0


PRETRAINING = Pretraining()


def make_backbone(name: Backbone, folder: Path, report: Report, plan: Pretraining = PRETRAINING) -> None:
    """Pre-train a backbone and save it in `folder`, weights in half precision."""
    torch.manual_seed(plan.seed)
    drawings = load_drawings()
    names = [drawing.name.replace("_", " ") for drawing in drawings]
    rng = random.Random(f"rankbench-tokenizer-{plan.seed}")
    tokenizer = _tokenizer(as_chat(document) for document in sample_documents(names, 4_000, rng))
    shape = SHAPES[name]
    processor = _processor(tokenizer, shape)
    model = _model(tokenizer, shape).eval()
    pool = _Pool.of(plan)
    _pretrain_tower(model.model.vision_tower, pool, plan, report)
    scenes = _Conversations(processor, pool, random.Random(f"rankbench-whole-{plan.seed}"), plan.batch)
    course = Course(plan.whole_steps, plan.batch, plan.lr, plan.seed)
    train_part([*model.parameters()], lambda: scenes.loss(model), course, part="whole", report=report)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    _halve(folder)


@dataclass(frozen=True)
class _Pool:
    """Scenes of drawings that no task shows. pixels: shape (n, 3, side, side), -1 to 1."""

    scenes: list[Scene]
    pixels: Tensor

    @classmethod
    def of(cls, plan: Pretraining) -> _Pool:
        drawings = load_drawings()
        unused = by_colour([one for one in drawings if one.kind is None and one.colour in DRAWING_COLOURS])
        rng = random.Random(f"rankbench-world-{plan.seed}")
        scenes = [sample_alone(unused, rng) for _ in range(plan.scenes)]
        pixels = torch.from_numpy(np.stack([np.asarray(render_scene(scene)) for scene in scenes]))
        return cls(scenes, pixels.permute(0, 3, 1, 2) / 127.5 - 1)


def _pretrain_tower(tower: Any, pool: _Pool, plan: Pretraining, report: Report) -> None:
    """Have the mean over patches tell every answer, by a linear head for each question."""
    answers = [[answer for _, answer in ask_all(scene)] for scene in pool.scenes]
    words = [sorted(set(column)) for column in zip(*answers, strict=True)]
    targets = torch.tensor([[own.index(a) for own, a in zip(words, row, strict=True)] for row in answers])
    heads = nn.ModuleList(nn.Linear(int(tower.config.hidden_size), len(own)) for own in words)

    def loss_of() -> Tensor:
        chosen = torch.randint(len(targets), (plan.tower_batch,))
        features = tower(pixel_values=pool.pixels[chosen]).last_hidden_state.mean(1)
        losses = [functional.cross_entropy(head(features), targets[chosen, k]) for k, head in enumerate(heads)]
        return torch.stack(losses).sum()

    course = Course(plan.tower_steps, plan.tower_batch, plan.lr, plan.seed)
    train_part([*tower.parameters(), *heads.parameters()], loss_of, course, part="tower", report=report)


@dataclass(frozen=True)
class _Conversations:
    """Conversations about the scenes of a pool."""

    processor: Any
    pool: _Pool
    rng: random.Random
    batch: int

    def loss(self, model: Any) -> Tensor:
        """Answer loss of one batch."""
        slots = self.processor.full_image_sequence
        chosen = self.rng.sample(range(len(self.pool.scenes)), self.batch)
        documents = [_document(list_all(self.pool.scenes[index]), slots) for index in chosen]
        encoded = _encoded(self.processor.tokenizer, documents)
        ids = encoded["input_ids"]
        kinds = (ids == self.processor.tokenizer.image_token_id).long()
        mask = _causal(encoded["attention_mask"])
        logits = model(
            input_ids=ids, attention_mask=mask, token_type_ids=kinds, pixel_values=self.pool.pixels[chosen]
        ).logits
        return answer_loss(logits, ids, self.processor.tokenizer)


def _document(turns: Turns, before: str) -> Document:
    """before: what stands for the picture, ahead of the first question."""
    document: Document = []
    for question, answer in turns:
        content = question if document else before + question
        document += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return document


def _causal(present: Tensor) -> dict[str, Tensor]:
    """Masks as Gemma3 takes them ready-made: which tokens each token sees; a picture of one token needs no more."""
    length = present.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril() & present.bool()[:, None, None, :]
    return {"full_attention": seen, "sliding_attention": seen}


def _encoded(tokenizer: Any, documents: Sequence[Document]) -> dict[str, Tensor]:
    found = tokenizer([as_chat(document) for document in documents], padding=True, return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def _tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PADDING, TURN_START, TURN_END, IMAGE_START, IMAGE_END, IMAGE_TOKEN]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    named = {"boi_token": IMAGE_START, "eoi_token": IMAGE_END, "image_token": IMAGE_TOKEN}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=TURN_START,
        eos_token=TURN_END,
        pad_token=PADDING,
        extra_special_tokens=named,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _processor(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> Any:
    images = Gemma3ImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    template = CHAT_TEMPLATE.replace("<image>\\n", IMAGE_START).replace("<image>\n", IMAGE_START)
    return Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=shape.image_tokens)


def _model(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> Any:
    heads = 4
    vision = SiglipVisionConfig(
        hidden_size=shape.tower_width,
        intermediate_size=2 * shape.tower_width,
        num_hidden_layers=shape.tower_layers,
        num_attention_heads=heads,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.llm_width,
        "intermediate_size": 2 * shape.llm_width,
        "num_hidden_layers": shape.llm_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "head_dim": shape.llm_width // heads,
        "query_pre_attn_scalar": shape.llm_width // heads,
        "layer_types": ["full_attention"] * shape.llm_layers,
        "initializer_range": 0.08,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Gemma3Config(
        vision_config=vision.to_dict(),
        text_config=text,
        mm_tokens_per_image=shape.image_tokens,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        boi_token_index=tokenizer.convert_tokens_to_ids(IMAGE_START),
        eoi_token_index=tokenizer.convert_tokens_to_ids(IMAGE_END),
    )
    model = Gemma3ForConditionalGeneration(config)
    nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=shape.tower_width**-0.5)
    embeddings = model.model.vision_tower.embeddings
    with torch.no_grad():  # a flat tile is worth about as much as its place, so that neither drowns the other
        embeddings.patch_embedding.weight.mul_(0.5)
        embeddings.position_embedding.weight.normal_(std=0.5)
    return model


def _halve(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor.half() for name, tensor in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def load_backbone(folder: Path, device: str = "cpu") -> Base:
    """A backbone in single precision."""
    return load_base(str(folder), device=torch.device(device), dtype=torch.float32)


def weights_digest(folder: Path) -> str:
    """Short hash of a backbone's weights: runs of two backbones are never told as one cell."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:16]
