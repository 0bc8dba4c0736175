"""What a user takes away from a finished study: adapter and card, merged checkpoint, other tools' configuration."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import mlflow
import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForImageTextToText
from transformers.utils import is_torchvision_available
from typer.testing import CliRunner

from flows.cli.main import app
from flows.stages import finetune_flow
from mars_core.demo import demo_backbone_path
from mars_core.models.processor import load_processor
from tasks.settings.study import StudyConfig, write_study
from tasks.storage.folder import Revision
from tasks.tracking.runs import use_store


def revision_of(config: StudyConfig) -> Revision:
    return Revision(Path(config.study), 1)


def adapter_of(config: StudyConfig, role: str = "chosen") -> Path:
    for record in revision_of(config).path("final").glob("*/training.json"):
        if json.loads(record.read_text())["role"] == role:
            return record.parent / "adapter"
    raise AssertionError(f"no final run is {role}")


def invoke(*words: str) -> dict:
    result = CliRunner().invoke(app, ["export", *words, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout[result.stdout.index("{") :])


def refused(*words: str) -> str:
    result = CliRunner().invoke(app, ["export", *words])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_the_card_has_the_test_scores_and_the_reason(finished):
    scores = json.loads(revision_of(finished).path("evaluation.json").read_text())
    choice = json.loads(revision_of(finished).path("choice.json").read_text())
    card = ModelCard.load(adapter_of(finished) / "README.md")
    assert choice["reason"] in card.text
    assert f"{scores['uniform']['overall']['perplexity']:.4f}" in card.text
    found = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert found["test", "perplexity"] == pytest.approx(scores["chosen"]["overall"]["perplexity"], abs=1e-6)
    assert card.data["library_name"] == "peft"


def test_the_adapter_folder_is_what_loaders_expect(finished):
    folder = adapter_of(finished)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == max(config["rank_pattern"].values())
    assert config["lora_alpha"] == 2 * config["r"]
    assert config["alpha_pattern"] == {name: 2 * rank for name, rank in config["rank_pattern"].items()}
    assert config["base_model_name_or_path"] == str(demo_backbone_path())
    assert (config["task_type"], config["peft_type"], config["inference_mode"]) == ("CAUSAL_LM", "LORA", True)
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "processor_config.json", "tokenizer.json", "chat_template.jinja"} <= names


def test_the_cards_code_runs(finished, tmp_path, monkeypatch):
    """As it stands, in the adapter's folder; where torchvision is missing, AutoProcessor without its video part."""
    folder = shutil.copytree(adapter_of(finished), tmp_path / "adapter")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    picture = next((Path(finished.data.images)).rglob("*.png"))
    shutil.copy(picture, folder / "picture.png")
    if not is_torchvision_available():
        processor = load_processor(demo_backbone_path())
        monkeypatch.setattr(
            transformers, "AutoProcessor", type("", (), {"from_pretrained": staticmethod(lambda *_: processor)})
        )
    monkeypatch.chdir(folder)
    said = io.StringIO()
    names: dict = {}
    with contextlib.redirect_stdout(said):
        exec(code, names)
    assert isinstance(names["model"], PeftModel)
    assert names["answer"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert said.getvalue().endswith("\n")


def test_the_card_is_in_mlflow_too(finished):
    record = json.loads((adapter_of(finished).parent / "training.json").read_text())
    use_store(Path(finished.study))  # not mlflow.set_tracking_uri, which would set the variable for all tests after it
    client = mlflow.MlflowClient()
    local = Path(client.download_artifacts(record["mlflow_run_id"], "adapter/README.md"))
    assert local.read_text() == (adapter_of(finished) / "README.md").read_text()


def test_a_lost_card_is_written_again_and_nothing_else_is_done(copied):
    folder = adapter_of(copied)
    before = (folder / "README.md").read_text()
    weights = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    (folder / "README.md").unlink()
    pair = json.loads((folder.parent / "training.json").read_text())["pair"]
    finetune_flow(copied, *pair)
    assert ModelCard(before).text == ModelCard.load(folder / "README.md").text
    assert (folder / "adapter_model.safetensors").stat().st_mtime_ns == weights
    written = (folder / "README.md").stat().st_mtime_ns
    finetune_flow(copied, *pair)
    assert (folder / "README.md").stat().st_mtime_ns == written


def test_merged_is_one_checkpoint_with_the_adapters_logits(finished, tmp_path):
    done = invoke(finished.study, "--merged", str(tmp_path / "merged"))
    assert done["logit_difference"] <= done["tolerance"] == 1e-4
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    base = AutoModelForImageTextToText.from_pretrained(demo_backbone_path(), dtype=torch.float32)
    text = load_processor(tmp_path / "merged").tokenizer("What is it?", return_tensors="pt")
    with torch.inference_mode():
        found, plain = merged(**text).logits, base(**text).logits
        expected = PeftModel.from_pretrained(base, str(adapter_of(finished)))(**text).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # fp32: the same sums in another order
    assert not torch.allclose(found, plain, atol=1e-3)
    assert ModelCard.load(tmp_path / "merged" / "README.md").data["library_name"] == "transformers"
    assert "exists already" in refused(finished.study, "--merged", str(tmp_path / "merged"))


@pytest.mark.parametrize("tool", ["trl", "llama-factory", "axolotl"])
def test_an_export_lies_whole_beside_its_file(finished, tmp_path, tool):
    done = invoke(finished.study, "--to", tool, "-o", str(tmp_path / "out.cfg"))
    folder = Path(done["folder"])
    assert done["rows"] == {"train.jsonl": 64, "validation.jsonl": 12}
    assert [len((folder / name).read_text().splitlines()) for name in done["rows"]] == [64, 12]
    chosen = json.loads(revision_of(finished).path("choice.json").read_text())["pair"]
    ranks = json.loads((folder / "start" / "adapter_config.json").read_text())["rank_pattern"]
    assert {rank for name, rank in ranks.items() if "vision_tower" in name} == {chosen[0]}
    assert {rank for name, rank in ranks.items() if "vision_tower" not in name} == {chosen[1]}
    text = (tmp_path / "out.cfg").read_text()
    assert str(folder / "start") in text
    assert compile(text, "script", "exec") if tool == "trl" else yaml.safe_load(text)
    assert "exists already" in refused(finished.study, "--to", tool, "-o", str(tmp_path / "out.cfg"))


def test_a_base_model_that_was_moved_is_known_by_its_content(copied, tmp_path):
    moved = shutil.copytree(copied.model, tmp_path / "moved")
    write_study(copied.model_copy(update={"model": str(moved)}), tmp_path / "study.yaml")
    done = invoke(str(tmp_path / "study.yaml"), "--to", "trl", "-o", str(tmp_path / "trl.py"))
    assert str(moved) in Path(done["config"]).read_text()
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    said = refused(str(tmp_path / "study.yaml"), "--to", "trl", "-o", str(tmp_path / "other.py"))
    assert "made with other settings" in said


def test_another_pair_may_be_exported(finished, tmp_path):
    done = invoke(finished.study, "--to", "axolotl", "-o", str(tmp_path / "a.yaml"), "--ranks", "4", "2")
    assert done["pair"] == [4, 2]
    said = refused(finished.study, "--merged", str(tmp_path / "m"), "--ranks", "4", "2")
    assert "run `mars finetune` first" in said
    assert "mars finetune --ranks 4 2" in said


def test_mistakes_are_one_message(finished, study, tmp_path):
    assert "either --merged DIR, or --to" in refused(finished.study)
    assert "either --merged DIR, or --to" in refused(finished.study, "--merged", "x", "--to", "axolotl")
    assert "MARS exports to trl, llama-factory, ms-swift, axolotl, unsloth" in refused(finished.study, "--to", "x")
    assert "ms-swift looks for image token 151646" in refused(finished.study, "--to", "ms-swift")
    assert "run `mars calibrate` or `mars run` first" in refused(str(study), "--merged", str(tmp_path / "m"))
    four_bit = finished.model_copy(update={"loading": finished.loading.model_copy(update={"four_bit": True})})
    write_study(four_bit, tmp_path / "four.yaml")
    said = refused(str(tmp_path / "four.yaml"), "--merged", str(tmp_path / "m"))
    assert "4 bits" in said
    assert "set loading.four_bit to false" in said


def test_a_study_without_its_final_run_names_the_command(copied, tmp_path):
    revision_of(copied).manifest(f"finetune-{adapter_of(copied).parent.name}").unlink()
    assert "run `mars finetune` first" in refused(copied.study, "--merged", str(tmp_path / "m"))


def test_a_changed_adapter_is_not_handed_over(copied, tmp_path):
    (adapter_of(copied) / "adapter_config.json").write_text("{}")
    assert "were changed since" in refused(copied.study, "--merged", str(tmp_path / "m"))
