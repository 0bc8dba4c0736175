"""The model card: metadata that the Hub reads, and code that is code."""

from __future__ import annotations

import math
import re

import pytest
from huggingface_hub import ModelCard

from mars_core.export.card import CardFacts, adapter_card, merged_card

FIT = {
    "law": "performance",
    "coefficients": {"A": 1.5, "alpha_m": 0.1, "alpha_l": 0.2, "beta": 0.3, "E": 0.4},
    "intervals": {name: [0.01, 9.0] for name in ("A", "alpha_m", "alpha_l", "beta", "E")},
    "statuses": [{"code": "x", "message": "mind the gap", "severity": "warning"}],
    "level": 0.95,
}
SCORES = {
    "base": {"perplexity": 9.0, "accuracy": 0.1, "n_answers": 50},
    "chosen": {"perplexity": 3.25, "accuracy": 0.625, "n_answers": 50},
    "uniform": {"perplexity": 3.5, "accuracy": 0.5, "n_answers": 50},
}


def facts(**others) -> CardFacts:
    settings = {
        "study": "my-study",
        "revision": 2,
        "model": "Qwen/Qwen2.5-VL-3B-Instruct",
        "is_folder": False,
        "model_type": "qwen2_5_vl",
        "model_fingerprint": "f00d",
        "four_bit": False,
        "trust_remote_code": False,
        "dtype": "bfloat16",
        "pair": (8, 16),
        "role": "chosen",
        "layers": 123,
        "recipe": {"learning_rate": 1e-5, "batch_size": 8},
        "recipe_hash": "cafe",
        "epochs": 3.0,
        "seed": 0,
        "data_hash": "beef",
        "counts": {"train": 1000, "validation": 50, "test": 60},
        "datasets": ("org/data",),
        "training": {
            "best_val_loss": math.log(3.0),
            "best_step": 40,
            "steps": 50,
            "seconds": 61.0,
            "device": "cpu",
            "trainable_parameters": 12345,
        },
        "scores": SCORES,
        "pairs": {"chosen": (8, 16), "uniform": (16, 16)},
        "laws": {"performance": FIT, "convergence": {"me": None, "llm": None}, "causes": {"me": "too few points"}},
        "choice": {"pair": (8, 16), "verdict": "best", "reason": "R.", "D_target": 1000.0, "decided_by": "posterior"},
        "notes": (),
        "versions": {"peft": "0.21"},
    }
    return CardFacts(**(settings | others))


def code_of(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


def test_the_hub_reads_what_it_needs():
    data = ModelCard(adapter_card(facts())).data
    assert (data.base_model, data["library_name"], data.pipeline_tag) == (
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "peft",
        "image-text-to-text",
    )
    assert {"lora", "base_model:adapter:Qwen/Qwen2.5-VL-3B-Instruct"} <= set(data.tags)
    assert data.datasets == ["org/data"]
    found = {(result.dataset_split, result.metric_type): result.metric_value for result in data.eval_results}
    assert found == {
        ("validation", "perplexity"): 3.0,
        ("test", "perplexity"): 3.25,
        ("test", "exact_match"): 0.625,
    }


def test_a_base_in_a_folder_is_named_in_the_text_only():
    """The Hub refuses a path as base_model."""
    card = adapter_card(facts(model="/models/mine", is_folder=True, datasets=()))
    data = ModelCard(card).data
    assert data.base_model is None
    assert not [tag for tag in data.tags if "/" in tag]
    assert 'from_pretrained("/models/mine"' in card
    assert "name the base's id on the Hub instead" in card


def test_before_the_evaluation_the_card_says_so():
    card = adapter_card(facts(scores={}, pairs={}))
    assert "The test split has not been scored yet." in card
    assert {result.dataset_split for result in ModelCard(card).data.eval_results} == {"validation"}


def test_the_text_has_ranks_laws_hashes_and_the_comparison():
    card = adapter_card(facts())
    for part in ("rank **8** in the vision", "| alpha_m | 0.1 | [0.01, 9] |", "mind the gap", "`beef`", "`cafe`"):
        assert part in card
    assert "Law C of the vision encoder** could not be fitted: too few points" in card
    assert "| uniform-rank default (16, 16) | 3.5000 | 50.0% | 50 |" in card
    assert "**best**: R." in card
    assert "\n\n\n" not in card
    tables = re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)


def test_equal_facts_make_equal_cards():
    assert adapter_card(facts()) == adapter_card(facts())


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("trust", [False, True])
def test_the_code_is_code(four_bit, trust):
    card = adapter_card(facts(four_bit=four_bit, trust_remote_code=trust, model='odd"\\name'))
    compile(code_of(card), "card", "exec")
    assert ("load_in_4bit=True" in card) is four_bit
    assert card.count("trust_remote_code=True") == (2 if trust else 0)


def test_a_merged_checkpoints_card_loads_it_without_peft():
    card = merged_card(adapter_card(facts()), "bfloat16", False)
    data = ModelCard(card).data
    assert (data["library_name"], data.base_model) == ("transformers", "Qwen/Qwen2.5-VL-3B-Instruct")
    assert "merged" in data.tags
    assert "lora" not in data.tags
    assert "peft" not in code_of(card).lower()
    assert "## Why these ranks" in card
    compile(code_of(card), "card", "exec")


def test_a_card_names_what_modules_have_of_their_own():
    recipe = {"learning_rate": 1e-5, "lora_alpha": "2r", "module_lora_alpha": "me 16", "projector_rank": 4}
    text = adapter_card(facts(recipe=recipe))
    assert (
        "rank **8** in the vision\nencoder and rank **4** in the projector and rank **16** in the language model"
        in text
    )
    assert "alpha = 2 x rank, other rules in some modules (me 16)." in text
    assert "| projector rank | 4 |" in text
    plain = adapter_card(facts())
    assert "encoder and rank **16** in projector and language model, alpha = 2 x rank everywhere." in plain
    assert "encoder and no adapter in the projector" in adapter_card(facts(recipe=recipe | {"projector_rank": 0}))


def test_a_model_that_hears_has_no_vision_encoder():
    card = adapter_card(facts(model_type="qwen2_audio"))
    assert not re.search(r"\bvision", card, re.IGNORECASE)
    assert "audio encoder" in card
    data = ModelCard(card).data
    assert data.pipeline_tag == "audio-text-to-text"
    assert "audio-language-model" in data.tags
