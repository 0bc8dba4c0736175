"""The model card of a final run: README.md with the Hub's metadata, made of what the study recorded.

Equal facts make equal text, so a card is written again only where something has changed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from mars_core.export.snippets import HEARING_CLASS, about_sound, load_adapter, load_merged
from mars_core.laws import get_law
from mars_core.markdown import code, plain
from mars_core.models.auto import hears_only, of_its_tower
from mars_core.report import formatting

TEMPLATE = "card.md.j2"
PIPELINE, KIND = "image-text-to-text", "vision-language-model"
HEARING_PIPELINE, HEARING_KIND = "audio-text-to-text", "audio-language-model"
LAW_NAMES = {"performance": "Law P", "me": "Law C of the vision encoder", "llm": "Law C of the language model"}
ROLE_NAMES = {
    "base": "before fine-tuning",
    "chosen": "chosen pair",
    "uniform": "uniform-rank default",
    "uniform-tuned-rate": "uniform-rank default at its best learning rate",
}
LOAD = re.compile(r"^## Load it\n.*?(?=^## )", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class CardFacts:
    """What a card says, as the study recorded it.

    model: hub id or folder (`is_folder`). pair: (r_me, r_llm). role: chosen, uniform or another word. layers: how many
    were adapted. counts: samples by split. datasets: ids on the Hub, where known. training: the final run's record.
    scores: overall test scores by role, empty before the evaluation; `pairs` names the pair of each role. laws, choice:
    as stored, None where there are none. notes: further sentences on the choice.
    """

    study: str
    revision: int
    model: str
    is_folder: bool
    model_type: str
    model_fingerprint: str
    four_bit: bool
    trust_remote_code: bool
    dtype: str
    pair: tuple[int, int]
    role: str
    layers: int
    recipe: Mapping[str, Any]
    recipe_hash: str
    epochs: float
    seed: int
    data_hash: str
    counts: Mapping[str, int]
    datasets: tuple[str, ...]
    training: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Any]]
    pairs: Mapping[str, tuple[int, int]]
    laws: Mapping[str, Any] | None
    choice: Mapping[str, Any] | None
    notes: tuple[str, ...]
    versions: Mapping[str, str]

    @property
    def title(self) -> str:
        """The card's heading."""
        return f"{self.study}: ranks ({self.pair[0]}, {self.pair[1]})"

    @property
    def alpha(self) -> str:
        """How alpha follows from the rank, in words."""
        rule = str(self.recipe.get("lora_alpha", "2r"))  # older records have none
        words = {"2r": "alpha = 2 x rank", "sqrt": "alpha = 8 x the root of the rank (rsLoRA's scaling)"}
        common = words.get(rule, f"alpha = {rule}")
        own = self.recipe.get("module_lora_alpha")
        return f"{common}, other rules in some modules ({own})" if own else f"{common} everywhere"

    @property
    def projector(self) -> str:
        """Where the projector's rank stands in the card's first sentence."""
        rank = self.recipe.get("projector_rank")
        if rank is None:
            return f"rank **{self.pair[1]}** in projector and language model"
        of_projector = f"rank **{rank}**" if rank else "no adapter"
        return f"{of_projector} in the projector and rank **{self.pair[1]}** in the language model"

    @property
    def validation_perplexity(self) -> float:
        """Perplexity of the kept checkpoint on the calibration validation set."""
        return math.exp(self.training["best_val_loss"])


def adapter_card(facts: CardFacts) -> str:
    """The card of an adapter folder."""
    kind = HEARING_KIND if hears_only(facts.model_type) else KIND
    data = ModelCardData(
        library_name="peft",
        tags=["lora", "peft", "mars", "transformers", kind, *_base_tag(facts)],
        **_metadata(facts),
    )
    load = load_adapter(facts.model, facts.dtype, facts.four_bit, facts.trust_remote_code)
    text = _template().render(
        facts=facts,
        load=about_sound(load) if hears_only(facts.model_type) else load,
        scores=_score_rows(facts),
        uniform="uniform" in facts.scores and facts.role == "chosen",
        laws=_law_tables(facts.laws),
        f=formatting,
    )
    card = f"---\n{data.to_yaml()}\n---\n\n{of_its_tower(text, facts.model_type)}"
    return _tidy(str(ModelCard(card)))


def merged_card(adapter: str, dtype: str, trust_remote_code: bool) -> str:
    """The card of a merged checkpoint, from the card of the adapter that was merged into it."""
    card = ModelCard(adapter)
    tags = [tag for tag in card.data.get("tags", []) if tag not in ("lora", "peft") and "base_model:" not in tag]
    card.data["library_name"], card.data["tags"] = "transformers", [*tags, "merged"]
    load = load_merged(dtype, trust_remote_code)
    load = about_sound(load) if HEARING_CLASS in adapter else load
    card.text = LOAD.sub(lambda _: load + "\n\n", card.text).replace(
        "LoRA adapter for", "Checkpoint with a LoRA adapter merged into", 1
    )
    return _tidy(str(card))


def _pipeline(facts: CardFacts) -> str:
    return HEARING_PIPELINE if hears_only(facts.model_type) else PIPELINE


def _metadata(facts: CardFacts) -> dict[str, Any]:
    return {
        # The Hub takes ids only; a folder is named in the text.
        "base_model": None if facts.is_folder else facts.model,
        "pipeline_tag": _pipeline(facts),
        "datasets": list(facts.datasets) or None,
        "metrics": ["perplexity", "exact_match"],
        "model_name": facts.title,
        "eval_results": _eval_results(facts),
    }


def _base_tag(facts: CardFacts) -> list[str]:
    return [] if facts.is_folder else [f"base_model:adapter:{facts.model}"]


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    found = [("validation", "perplexity", facts.validation_perplexity)]
    score = facts.scores.get(facts.role, {})
    named = (("perplexity", "perplexity"), ("accuracy", "exact_match"))
    found += [("test", metric, score[key]) for key, metric in named if score.get(key) is not None]
    return [
        EvalResult(
            task_type=_pipeline(facts),
            dataset_type=facts.datasets[0] if facts.datasets else facts.study,
            dataset_name=f"{facts.study}, {split} split",
            dataset_split=split,
            dataset_args={"data_hash": facts.data_hash},
            metric_type=metric,
            metric_value=round(float(value), 6),
        )
        for split, metric, value in found
    ]


def _score_rows(facts: CardFacts) -> list[dict[str, Any]]:
    return [
        {
            "name": _row_name(facts, role),
            "perplexity": score.get("perplexity"),
            "accuracy": score.get("accuracy"),
            "answers": score.get("n_answers"),
        }
        for role, score in facts.scores.items()
    ]


def _row_name(facts: CardFacts, role: str) -> str:
    name = ROLE_NAMES.get(role, plain(role))
    if role in facts.pairs:
        name += f" {formatting.pair(facts.pairs[role])}"
    return f"**{name}** (this adapter)" if role == facts.role else name


def _law_tables(laws: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if laws is None:
        return []
    fits = {"performance": laws["performance"], **{module: laws["convergence"].get(module) for module in ("me", "llm")}}
    return [_law_table(name, fit, (laws.get("causes") or {}).get(name)) for name, fit in fits.items()]


def _law_table(name: str, fit: Mapping[str, Any] | None, cause: str | None) -> dict[str, Any]:
    if fit is None:
        return {"name": LAW_NAMES[name], "equation": None, "cause": cause or "no reason was recorded"}
    rows = [
        {"symbol": symbol, "value": value, "interval": fit["intervals"].get(symbol)}
        for symbol, value in fit["coefficients"].items()
    ]
    doubts: Sequence[Mapping[str, Any]] = [status for status in fit["statuses"] if status["severity"] != "info"]
    return {
        "name": LAW_NAMES[name],
        "equation": get_law(fit["law"]).equation,
        "level": fit["level"],
        "rows": rows,
        "warnings": [status["message"] for status in doubts],
    }


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("mars_core.export", package_path=""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": plain, "code": code, "cell": lambda text: str(text).replace("|", "\\|")}
    return environment.get_template(TEMPLATE)


def _tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
