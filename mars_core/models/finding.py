"""Find vision encoder, projector and LLM of a model that is not in the table, and prove the finding.

The guess comes from what transformers standardises (`get_encoder`, `get_decoder`) and from what holds everything else.
The proof is one forward and backward pass with a picture, and one with text alone:

- The LLM's layers are those below the decoder; no other layer has a part in the logits of text alone.
- The encoder's are those that its blocks consist of, or that the last of its blocks depends on.
- The projector's are the others that the logits depend on: they stand between the encoder's blocks and the LLM.
- What no logit depends on is left out (`unused`): pooling heads, blocks after the layer whose features are read, towers
  of other modalities. So is what LoRA cannot adapt (`unadaptable`): layers that give a single number, those whose
  names PEFT takes for experts of a mixture, and those whose saved adapters it does not find again.

Names of modules decide nothing but which of several decoders or encoders transformers means.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn

from mars_core.models.families import Family
from mars_core.models.reloading import lost_on_reload

Batch = Mapping[str, Tensor]

LOST = "PEFT gives its saved adapter another name when it loads it"
TEXT_INPUTS = ("input_ids", "attention_mask")


class Undecided(ValueError):  # noqa: N818 - reads as the fact it states
    """No partition could be found and proved. guess: the best one, None where there is no encoder to adapt."""

    def __init__(self, reason: str, guess: Family | None) -> None:
        super().__init__(reason)
        self.guess = guess


def guess_family(model: Any) -> Family:
    """Where the modules should be, from the model's structure alone.

    Raises:
        Undecided: the model has no vision encoder of its own, no separate LLM, or no output head.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise Undecided(
            "it is an encoder-decoder: its answers go into a decoder of their own, and MARS trains on one "
            "sequence of question and answer",
            None,
        )
    paths = {module: name for name, module in model.named_modules()}
    head = model.get_output_embeddings()
    if head is None:
        raise Undecided("it has no output head (`get_output_embeddings`) that gives logits of text tokens", None)
    decoder = paths.get(_decoder(model), "")
    encoders = _encoders(model, paths, decoder) or _encoders(model, paths, "")
    if not encoders:
        raise Undecided(
            "it has no vision encoder of its own: pictures go into the LLM as patches or as tokens, so there are no "
            "two modules to balance",
            None,
        )
    me = encoders[0] if len(encoders) == 1 else _common_parent(encoders)
    holds_encoder = any(_is_below(one, decoder) for one in encoders)
    llm = _around_embeddings(model, encoders) if not decoder or holds_encoder else decoder
    if llm is None:
        raise Undecided(
            f"its LLM is no module beside the vision encoder ({', '.join(encoders)})", Family(me, (), decoder or "?")
        )
    return Family(me, tuple(_rest(model, [*encoders, llm, paths.get(head, "")])), llm)


def find_family(model: Any, batch: Batch) -> Family:
    """Where the modules are, proved on `batch`, which holds a question about a picture.

    `model`: any weights, of any width; only its structure counts.

    Raises:
        Undecided: a forward pass contradicts the guess, or fails.
    """
    guess = guess_family(model)
    try:
        seen = _watch(model, guess, batch)
        of_text = _watch(model, guess, _text_alone(batch, seen.length))
    except torch.OutOfMemoryError:
        raise  # it says nothing of the model
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError) as error:
        raise Undecided(f"a forward pass with a picture fails ({_first_line(error)})", guess) from error
    return _proved(model, guess, seen, of_text)


def unadaptable(model: Any) -> dict[str, str]:
    """Linear layers that LoRA cannot adapt here, each with its reason.

    PEFT takes layers of a mixture of experts by the names that transformers 4 had (`gate_proj`, `down_proj` ...) and,
    when an adapter is made or loaded, leads them to the experts' stacked weights, and dense layers of these names too.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    single = {name: "gives a single number" for name, module in linear.items() if module.out_features == 1}
    config = LoraConfig(r=1, target_modules=list(linear))
    convert_peft_config_for_transformers(config, model=model, conversions=None)
    taken = linear.keys() - set(config.target_modules or ())
    refused = single | dict.fromkeys(sorted(taken - single.keys()), "PEFT takes its name for an expert's")
    lost = lost_on_reload(model, [name for name in linear if name not in refused])
    return refused | dict.fromkeys(lost, LOST)


@dataclass
class _Seen:
    """What one forward pass shows: layers that the logits depend on, and that the encoder's last block depends on."""

    used: set[str] = field(default_factory=set)
    before_last_block: set[str] = field(default_factory=set)
    length: int = 0


def _proved(model: Any, guess: Family, seen: _Seen, of_text: _Seen) -> Family:
    head = {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in head]
    llm, refused = {name for name in linear if _is_below(name, guess.llm)}, unadaptable(model)
    if outside := sorted(of_text.used - llm - head):
        raise Undecided(f"text alone passes through {outside[0]}, which lies outside of the LLM ({guess.llm})", guess)
    if not seen.used & llm:
        raise Undecided(f"no logit depends on a linear layer of the LLM ({guess.llm})", guess)
    if all(refused.get(name) == LOST for name in seen.used & llm):
        raise Undecided(
            f"PEFT {peft.__version__} gives the saved adapters of its LLM other names when it loads them, so that a "
            "final run could not be used: try another version of PEFT or of transformers",
            None,
        )
    blocks = _block_paths(model, guess)
    pictures = [name for name in linear if name in seen.used and name not in llm and name not in refused]
    me = [name for name in pictures if name in seen.before_last_block or _is_below_any(name, blocks)]
    if not me:
        raise Undecided(f"no logit depends on a linear layer of the vision encoder's blocks ({guess.me})", guess)
    projector = [name for name in pictures if name not in me]
    dead = [name for name in linear if name not in seen.used or name in refused]
    kept = [*me, *(name for name in llm if name not in dead)]
    return Family(
        _tower(model, guess, me), _subtrees(projector, [*kept, *dead]), guess.llm, _patterns(dead, [*kept, *projector])
    )


def _tower(model: Any, guess: Family, me: list[str]) -> str:
    """The one encoder that holds every layer of the ME, or what holds several."""
    paths = {module: name for name, module in model.named_modules()}
    towers = _encoders(model, paths, guess.llm)
    return next((tower for tower in towers if all(_is_below(name, tower) for name in me)), guess.me)


def _watch(model: Any, guess: Family, batch: Batch) -> _Seen:
    zeros: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    seen = _Seen(length=int(batch["input_ids"].shape[1]))
    with _hooks(model, guess, zeros, last), torch.enable_grad():
        logits = model(**batch, use_cache=False).logits
    names, tensors = list(zeros), tuple(zeros.values())
    seen.used = _depends(logits, names, tensors)
    for output in last.values():
        seen.before_last_block |= _depends(output, names, tensors)
    return seen


def _depends(output: Tensor, names: list[str], zeros: tuple[Tensor, ...]) -> set[str]:
    if not output.requires_grad:
        return set()
    gradients = torch.autograd.grad(output.float().sum(), zeros, retain_graph=True, allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


@contextmanager
def _hooks(model: Any, guess: Family, zeros: dict[str, Tensor], last: dict[str, Tensor]) -> Iterator[None]:
    """Add a zero to what every linear layer gives, and note what the last block of each list of the encoder gives."""

    def add_zero(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            if not isinstance(output, Tensor):
                return output  # a router of a mixture of experts: LoRA cannot add to what it gives
            if name not in zeros:
                zeros[name] = output.new_zeros((), requires_grad=True)
            return output + zeros[name]

        return hook

    def note(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            last[path] = _first_tensor(output)

        return hook

    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_hook(add_zero(name)) for name, module in linear]
    for path in _block_paths(model, guess):
        handles += [block.register_forward_hook(note(path)) for block in model.get_submodule(path)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_tensor(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return output


def _block_paths(model: Any, guess: Family) -> list[str]:
    """Lists of blocks outside of the LLM, below the encoder: the largest by linear layers, and those half as large."""
    lists = {
        name: _linear_count(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and _is_below(name, guess.me) and not _is_below(name, guess.llm)
    }
    outer = {name: count for name, count in lists.items() if not _is_inside_any(name, lists)}
    largest = max(outer.values(), default=0)
    return [name for name, count in outer.items() if count and 2 * count >= largest]


def _is_inside_any(name: str, others: Iterable[str]) -> bool:
    return any(name != other and _is_below(name, other) for other in others)


def _linear_count(module: nn.Module) -> int:
    return sum(isinstance(part, nn.Linear) for part in module.modules())


def _decoder(model: Any) -> nn.Module | None:
    try:
        decoder: nn.Module = model.get_decoder()
    except (AttributeError, NotImplementedError):
        return None
    return None if decoder is model else decoder


def _around_embeddings(model: Any, encoders: list[str]) -> str | None:
    """The outermost module with the input embeddings and blocks, but without an encoder."""
    embeddings = model.get_input_embeddings()
    for name, module in model.named_modules():
        if name and not any(_is_below(one, name) for one in encoders) and embeddings in module.modules():
            return name if _linear_count(module) else None
    return None


def _encoders(model: Any, paths: Mapping[nn.Module, str], llm: str) -> list[str]:
    """The encoder that transformers means, and further ones that take pixels and stand beside it; where nothing takes
    pixels, the same of sounds."""
    for modality, entry in (("image", "pixel_values"), ("audio", "input_features")):
        if named := _encoders_of(modality, entry, model, paths, llm):
            return named
    return []


def _encoders_of(modality: str, entry: str, model: Any, paths: Mapping[nn.Module, str], llm: str) -> list[str]:
    try:
        found = model.get_encoder(modality=modality)
    except (AttributeError, NotImplementedError, ValueError, TypeError):
        found = model
    first = paths.get(found, "")
    named = [first] if first and not _is_below(llm, first) else []
    others = [
        name
        for name, module in model.named_modules()
        if name and _takes(entry, module) and not _is_below(name, llm) and not _is_below(llm, name)
    ]
    beside = [name for name in others if not any(_is_below(name, one) or _is_below(one, name) for one in named)]
    return named + [name for name in beside if not _is_inside_any(name, beside)]


def _takes(entry: str, module: nn.Module) -> bool:
    has_blocks = any(isinstance(part, nn.ModuleList) and _linear_count(part) for part in module.modules())
    return has_blocks and getattr(module, "main_input_name", None) == entry


def _rest(model: Any, known: Collection[str]) -> Iterator[str]:
    """Outermost modules with linear layers that hold none of the known ones and lie in none."""
    taken: list[str] = []
    for name, module in model.named_modules():
        held = any(_is_below(one, name) for one in known if one)
        if name and not held and not _is_below_any(name, [*known, *taken]) and _linear_count(module):
            taken.append(name)
            yield name


def _text_alone(batch: Batch, length: int) -> Batch:
    """The last three tokens of the longest question, which are text."""
    row = int(batch["attention_mask"].sum(dim=1).argmax()) if "attention_mask" in batch else 0
    end = int(batch["attention_mask"][row].sum()) if "attention_mask" in batch else length
    ids = batch["input_ids"][row : row + 1, max(0, end - 3) : end]
    alone = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return alone | {name: torch.zeros_like(ids) for name in ("mm_token_type_ids", "token_type_ids") if name in batch}


def _subtrees(wanted: Iterable[str], others: Collection[str]) -> tuple[str, ...]:
    """The highest paths that hold all of `wanted` and none of the others."""
    found: list[str] = []
    for name in wanted:
        path = name
        while "." in path and not any(_is_below(other, path.rpartition(".")[0]) for other in others):
            path = path.rpartition(".")[0]
        if path not in found:
            found.append(path)
    return tuple(found)


def _patterns(dead: list[str], others: Collection[str]) -> tuple[str, ...]:
    exact = set(dead)
    return tuple(re.escape(path) if path in exact else re.escape(path) + r"\..*" for path in _subtrees(dead, others))


def _common_parent(paths: Iterable[str]) -> str:
    parts = [path.split(".") for path in paths]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)


def _is_below(name: str, path: str) -> bool:
    return bool(path) and (name == path or name.startswith(path + "."))


def _is_below_any(name: str, paths: Iterable[str]) -> bool:
    return any(_is_below(name, path) for path in paths)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
