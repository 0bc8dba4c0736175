"""Configuration of other tools: real options, both ranks, rows that say what the samples say."""

from __future__ import annotations

import ast
import copy
import io
import json
import shlex
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import get_scheduler

from mars_core.data.chat import render
from mars_core.data.encode import encode_sample
from mars_core.data.readers import read_samples
from mars_core.data.records import BytesImage, Turn
from mars_core.demo.shipped import demo_backbone_path
from mars_core.export.chat_facts import chat_facts
from mars_core.export.probe import probe_batch
from mars_core.export.rows import RowWriter
from mars_core.export.start import save_start
from mars_core.export.tool import ToolRun
from mars_core.export.tools import TOOLS
from mars_core.models.loading import load_base
from mars_core.models.lora import adapter_ranks, layer_alphas, layer_ranks, lora_config
from mars_core.models.partition import GROUPS
from mars_core.ranks import AlphaRules, RankPair
from mars_core.rates import LearningRates
from mars_core.training.finetune import all_logits
from mars_core.training.optimizer import make_schedule
from mars_core.training.recipe import Recipe

OPTIONS = json.loads(Path(__file__).with_name("options.json").read_text())
PAIRS = [RankPair(2, 4), RankPair(8, 2), RankPair(0, 4), RankPair(4, 4)]


@pytest.fixture(scope="module")
def loaded():
    return load_base(str(demo_backbone_path()), device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def demo(loaded):
    """The demo's backbone, with a model of its own that a test may adapt."""
    return replace(loaded, model=copy.deepcopy(loaded.model))


@pytest.fixture
def run_of(loaded, tmp_path):
    """A final run of a pair, as another tool gets it; some of its settings may be others."""

    def make(pair: RankPair = RankPair(2, 4), **others) -> ToolRun:  # noqa: B008 - frozen
        recipe = others.get("recipe", Recipe(dtype="bfloat16"))
        family = loaded.partition.family
        settings = {
            "study": "my study",
            "model": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
            "model_type": "llava_onevision",
            "trust_remote_code": False,
            "four_bit": False,
            "gradient_checkpointing": True,
            "pair": pair,
            "ranks": layer_ranks(loaded.partition, pair),
            "alphas": layer_alphas(loaded.partition, pair, recipe.alpha),
            "modules": {"projector": family.projector, "me": (family.me,), "llm": (family.llm,)},
            "recipe": recipe,
            "steps": 100,
            "epochs": 1.5,
            "seed": 3,
            "micro_batch_size": 2,
            "rows": tmp_path / "with space",
            "start": tmp_path / "with space" / "start",
            "output": tmp_path / "output",
            "chat": replace(
                chat_facts(loaded.processor),
                image_token_id=151655 if others.get("model_type") == "qwen2_5_vl" else 151646,
            ),
        }
        return ToolRun(**(settings | others))

    return make


def settings_of(text: str) -> dict:
    """Options of a YAML file, or of the flags of a shell script."""
    if "SFTConfig(" in text:
        return settings_of_script(text)
    if not text.startswith("#!"):
        return yaml.safe_load(text)
    words = shlex.split(text, comments=True)
    assert words[:2] == ["swift", "sft"]
    flags = [place for place, word in enumerate(words) if word.startswith("--")]
    return {words[place][2:]: words[place + 1] for place in flags}


def settings_of_script(text: str) -> dict:
    """What a script hands to SFTConfig."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    (config,) = [call for call in calls if getattr(call.func, "id", "") == "SFTConfig"]
    return {word.arg: ast.literal_eval(word.value) for word in config.keywords}


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "llava_onevision", "of_tomorrow"])
@pytest.mark.parametrize("tool", TOOLS)
def test_every_option_is_one_that_the_tool_has(run_of, tool, model_type, four_bit):
    rendered = TOOLS[tool].render(run_of(model_type=model_type, four_bit=four_bit))
    options = settings_of(rendered.text)
    assert options.keys() <= set(OPTIONS[tool]["options"])
    assert all(f"# - {note}" in rendered.text for note in rendered.notes)


def test_axolotls_kernels_are_off(run_of):
    """Axolotl turns them on by itself, and fails for types whose attention class it cannot import."""
    options = settings_of(TOOLS["axolotl"].render(run_of()).text)
    names = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
    assert [options.get(name) for name in names] == [False] * 4


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_axolotls_patterns_give_peft_both_ranks(run_of, demo, pair):
    options = settings_of(TOOLS["axolotl"].render(run_of(pair)).text)
    config = LoraConfig(
        r=options["lora_r"],
        lora_alpha=options["lora_alpha"],
        target_modules=options["lora_target_modules"],
        rank_pattern=options["lora_rank_pattern"],
        alpha_pattern=options["lora_alpha_pattern"],
    )
    wanted = lora_config(demo.partition, pair)
    assert (config.rank_pattern, config.alpha_pattern) == (wanted.rank_pattern, wanted.alpha_pattern)
    assert per_group(get_peft_model(demo.model, config), demo.partition) == counted(demo.partition, pair)


RECIPES = {
    "rates": Recipe(module_learning_rates=LearningRates(2e-6, 3e-6, 4e-6), final_share=0.2),
    "LoRA+": Recipe(lora_plus_ratio=16.0, schedule="linear", optimizer="adamw", weight_decay=0.1, beta2=0.95),
    "both": Recipe(
        module_learning_rates=LearningRates(2e-6, 3e-6, 4e-6), lora_plus_ratio=4.0, schedule="linear", final_share=0.2
    ),
    "stable": Recipe(schedule="warmup_stable_decay", decay_ratio=0.5, final_share=0.1),
    "constant": Recipe(schedule="constant"),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("tool", TOOLS)
def test_a_tools_optimizer_and_schedule_are_the_recipes(run_of, tool, recipe):
    """Transformers' scheduler of the options given, with what LLaMA-Factory adds to them."""
    rendered = TOOLS[tool].render(run_of(recipe=recipe))
    options = settings_of(rendered.text)
    assert options.keys() <= set(OPTIONS[tool]["options"])
    betas = [float(options[f"adam_beta{number}"]) for number in (1, 2)]
    assert (betas, float(options["weight_decay"])) == ([recipe.beta1, recipe.beta2], recipe.weight_decay)
    settings = options.get("lr_scheduler_kwargs", {})
    settings = json.loads(settings) if isinstance(settings, str) else settings
    if tool == "llama-factory" and recipe.schedule == "warmup_stable_decay":
        assert settings["num_stable_steps"] == 40
    rate, kind = float(options["learning_rate"]), options.get("lr_scheduler_type", options.get("lr_scheduler"))
    given = partial(get_scheduler, kind, num_warmup_steps=int(options["warmup_steps"]), num_training_steps=100)
    expected = shares(lambda optimizer: make_schedule(optimizer, recipe, 100), rate)
    assert shares(partial(given, scheduler_specific_kwargs=settings), rate) == pytest.approx(expected, abs=1e-12)


def shares(schedule_of, rate: float) -> list[float]:
    """Share of the peak at every step."""
    optimizer, found = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=rate), []
    schedule = schedule_of(optimizer)
    for _ in range(100):
        found.append(schedule.get_last_lr()[0] / rate)
        optimizer.step()
        schedule.step()
    return found


def test_axolotls_groups_give_every_adapter_its_modules_rate(run_of, demo):
    """By the rule of its optimizer mixin: the first path that occurs in a parameter's name."""
    rates = LearningRates(2e-6, 3e-6, 4e-6)
    options = settings_of(TOOLS["axolotl"].render(run_of(recipe=Recipe(module_learning_rates=rates))).text)
    lookup = {module: group["lr"] for group in options["lr_groups"] for module in group["modules"]}
    for group in GROUPS:
        for layer in demo.partition.group(group):
            name = f"base_model.model.{layer.name}.lora_A.default.weight"
            assert next(lr for module, lr in lookup.items() if module in name) == rates.rate(group)
    assert options["learning_rate"] == 4e-6
    assert "loraplus_lr_ratio" not in options


def test_what_a_tool_cannot_carry_is_said(run_of):
    rendered = {
        (tool, name): TOOLS[tool].render(run_of(recipe=RECIPES[name])) for tool in TOOLS for name in ("rates", "both")
    }
    swift = settings_of(rendered["ms-swift", "both"].text)
    assert (float(swift["vit_lr"]), float(swift["aligner_lr"]), float(swift["learning_rate"])) == (2e-6, 3e-6, 4e-6)
    factory = settings_of(rendered["llama-factory", "both"].text)
    assert (factory["learning_rate"], factory["loraplus_lr_ratio"]) == (4e-6, 4.0)
    axolotl = settings_of(rendered["axolotl", "both"].text)
    assert (axolotl["loraplus_lr_ratio"], "lr_groups" in axolotl) == (4.0, False)
    said = {key: " ".join(one.notes) for key, one in rendered.items()}
    assert "rates of single modules, 2e-06 (vision encoder), 4e-06 (LLM), 3e-06 (projector)" in said["axolotl", "both"]
    assert "left out" in said["llama-factory", "rates"]
    assert "LoRA+ ratio 4 is left out" in said["ms-swift", "both"]
    assert not [key for key in said if key[1] == "rates" and "LoRA+" in said[key]]


def test_axolotls_patterns_have_the_scales_of_the_modules(run_of, demo):
    recipe = Recipe(module_lora_alpha=AlphaRules(6.0, "2r", "sqrt"))
    options = settings_of(TOOLS["axolotl"].render(run_of(recipe=recipe)).text)
    wanted = lora_config(demo.partition, RankPair(2, 4), alpha=recipe.alpha)
    assert options["lora_alpha_pattern"] == wanted.alpha_pattern
    assert (options["lora_r"], options["lora_alpha"]) == (wanted.r, wanted.lora_alpha)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_the_untrained_adapter_has_both_ranks_and_changes_nothing(demo, pair, tmp_path):
    probe = probe_batch(demo)
    before = all_logits(demo.model, probe)
    save_start(demo.partition, pair, 0, tmp_path, model_id="some/base", alpha="2r")
    wrapped = PeftModel.from_pretrained(demo.model, str(tmp_path), is_trainable=True)
    assert torch.equal(all_logits(wrapped, probe), before)
    assert per_group(wrapped, demo.partition) == counted(demo.partition, pair)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (stored["base_model_name_or_path"], stored["r"]) == ("some/base", max(pair.r_me, pair.r_llm))
    first = [parameter for name, parameter in wrapped.named_parameters() if "lora_A" in name]
    for a in first:  # Kaiming's uniform distribution with a = sqrt(5) is U(-1/sqrt(in), 1/sqrt(in))
        bound = a.shape[1] ** -0.5
        assert 0.8 * bound < a.abs().max() <= bound


def per_group(wrapped, partition) -> Counter:
    group_of = {layer.name: group for group in GROUPS for layer in partition.group(group)}
    assert {scale for _, scale in adapter_ranks(wrapped).values()} == {2}
    return Counter((group_of[name], rank) for name, (rank, _) in adapter_ranks(wrapped).items())


def counted(partition, pair) -> Counter:
    ranks = {"me": pair.r_me, "projector": pair.r_llm, "llm": pair.r_llm}
    return Counter({(group, rank): len(partition.group(group)) for group, rank in ranks.items() if rank})


@pytest.mark.parametrize(("tool", "option"), [("llama-factory", "adapter_name_or_path"), ("ms-swift", "adapters")])
def test_a_tool_of_one_rank_says_so_and_starts_from_the_adapter(run_of, tool, option):
    run = run_of()
    rendered = TOOLS[tool].render(run)
    options = settings_of(rendered.text)
    assert options[option] == str(run.start)
    assert "lora_rank" not in options
    assert "cannot express two" in rendered.notes[0]
    assert "r_me = 2 and r_llm = 4" in rendered.text.splitlines()[0 if tool == "llama-factory" else 1]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_step_is_the_recipes_batch(run_of, tool):
    options = settings_of(TOOLS[tool].render(run_of()).text)
    micro = options.get("micro_batch_size", options.get("per_device_train_batch_size"))
    assert int(micro) * int(options["gradient_accumulation_steps"]) == 8
    assert float(options["learning_rate"]) == 1e-5
    assert int(options["warmup_steps"]) == 10


def test_llama_factory_finds_the_rows_by_its_dataset_info(run_of):
    rendered = TOOLS["llama-factory"].render(run_of())
    options, info = settings_of(rendered.text), json.loads(rendered.files["dataset_info.json"])
    assert info[options["dataset"]]["file_name"] == "train.jsonl"
    assert info[options["eval_dataset"]]["file_name"] == "validation.jsonl"
    assert info["mars_train"]["columns"] == {"messages": "messages", "images": "images"}


@pytest.fixture
def writer(loaded, tmp_path) -> RowWriter:
    return RowWriter(loaded.processor, tmp_path / "out")


def test_rows_say_what_the_samples_say(samples, tmp_path, writer):
    """Read back by MARS's own reader of messages, from the text alone."""
    file = tmp_path / "train.jsonl"
    rows = [writer.marked(sample) for sample in samples]
    for row, sample in zip(rows, samples, strict=True):
        assert [Path(path).read_bytes() for path in row["images"]] == [
            (image.folder / image.path).read_bytes() for image in sample.images
        ]
        row["images"] = [Path(path).name for path in row["images"]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = read_samples(file, samples[0].images[0].folder, "messages")
    assert [render(tuple(sample.turns), writer._processor) for sample in again] == [
        render(tuple(sample.turns), writer._processor) for sample in samples
    ]


def test_blocks_carry_the_images_paths_in_order(samples, writer):
    for sample in samples:
        blocks = [block for message in writer.blocks(sample)["messages"] for block in message["content"]]
        paths = [block["path"] for block in blocks if block["type"] == "image"]
        assert paths == [str((image.folder / image.path).resolve()) for image in sample.images]


def test_a_script_s_rows_give_the_tokens_and_labels_that_are_trained(samples, writer, loaded):
    for sample in samples[:4]:
        row, encoded = writer.encoded(sample), encode_sample(sample, loaded.processor)
        assert row["tokens"] == len(encoded)
        assert [tuple(span) for span in json.loads(row["answers"])] == list(encoded.answer_spans)


def test_images_that_tools_would_not_read_alike_become_files(samples, writer, tmp_path):
    """One inside a table as its own bytes, one with transparency as the pixels that MARS shows."""
    inside = BytesImage((samples[0].images[0].folder / samples[0].images[0].path).read_bytes(), "x")
    clear = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(clear, "PNG")
    paths = [
        Path(writer.marked(replace(samples[0], images=(image,)))["images"][0])
        for image in (inside, BytesImage(clear.getvalue(), "clear.png"))
    ]
    assert all(path.parent == tmp_path / "out" / "images" for path in paths)
    assert paths[0].read_bytes() == inside.data
    assert np.asarray(Image.open(paths[1])).tolist() == np.full((8, 8, 3), 255).tolist()


def test_what_stands_between_image_and_text_is_the_templates(processors, samples, tmp_path):
    """LLaVA-OneVision's template puts a line break there and images first, Qwen's nothing; rows of MARS have either."""
    turn = Turn("user", "Look:\n<image>\nWhat is it?")
    sample = replace(samples[0], turns=(turn, Turn("assistant", "A dog.")))
    contents = {
        name: RowWriter(processor, tmp_path).marked(sample)["messages"][0]["content"]
        for name, processor in processors.items()
    }
    assert contents == {"llava": "<image>\nLook:\nWhat is it?", "qwen": "Look:<image>What is it?"}


def test_a_models_facts_are_read_off_its_template(processors):
    llava, qwen = (chat_facts(processor) for processor in processors.values())
    assert (llava.default_system, qwen.default_system) == ("", "You are a helpful assistant.")
    processor = processors["qwen"]
    assert qwen.image_token_id == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")


def test_axolotl_says_first_where_it_trains_on_prompts(run_of):
    for model_type, template in [("llava_onevision", None), ("idefics3", None), ("qwen2_5_vl", "qwen2_vl")]:
        rendered = TOOLS["axolotl"].render(run_of(model_type=model_type))
        options = settings_of(rendered.text)
        assert rendered.notes[0].startswith("WARNING: TRAINS ON PROMPTS") == (template is None)
        assert "stopped on a small model" in TOOLS["axolotl"].render(run_of(model_type="smolvlm")).notes[0]
        assert options.get("chat_template") == template
        assert {options[f"lora_{part}_kernel"] for part in ("mlp", "qkv", "o", "embedding")} == {False}
        assert (options["eval_strategy"], options["save_strategy"]) == ("epoch", "epoch")


def test_ms_swift_is_told_the_template_and_refuses_another_image_token(run_of):
    options = settings_of(TOOLS["ms-swift"].render(run_of(model_type="internvl")).text)
    assert (options["model_type"], options["template"]) == ("internvl", "internvl_hf")
    with pytest.raises(ValueError, match=r"looks for image token 128257 .* and this model's is 151646"):
        TOOLS["ms-swift"].render(run_of(model_type="idefics3"))


def test_llama_factory_gets_the_models_own_system_prompt(run_of):
    options = settings_of(TOOLS["llama-factory"].render(run_of()).text)
    assert (options["template"], options["default_system"]) == ("llava_next_qwen", "")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028"])
def test_a_name_with_a_line_break_stays_a_comment(run_of, tool, end):
    """The study's file may be somebody else's."""
    attack = f"mine{end}import os; os.mkdir('x')"
    text = TOOLS[tool].render(run_of(study=attack, layer_wise=attack)).text
    assert len([line for line in text.splitlines() if "os.mkdir" in line and not line.startswith("# ")]) == 0


@pytest.mark.parametrize("tool", ["trl", "unsloth"])
@pytest.mark.parametrize("recipe", [Recipe(), *RECIPES.values()], ids=["plain", *RECIPES])
def test_a_script_is_python_whatever_the_recipe(run_of, tool, recipe):
    text = TOOLS[tool].render(run_of(recipe=recipe, four_bit=True)).text
    compile(text, "script", "exec")
    assert ("def create_optimizer" in text) == (recipe.lora_plus_ratio != 1 or len(set(recipe.learning_rates)) > 1)


def test_answers_that_are_not_trained_on_are_said_where_a_tool_trains_on_them(run_of, samples, writer):
    said = {tool: " ".join(TOOLS[tool].render(run_of(untrained=True)).notes) for tool in TOOLS}
    assert {tool for tool, notes in said.items() if "weight 0" in notes} == {"llama-factory", "axolotl"}
    turns = (Turn("user", "a"), Turn("assistant", "b", trained=False), Turn("user", "c"), Turn("assistant", "d"))
    row = writer.marked(replace(samples[0], images=(), turns=turns))
    assert [message.get("loss") for message in row["messages"]] == [None, False, None, None]
