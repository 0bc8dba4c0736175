"""What the planner says of two published checkpoints on every device of its table.

    python benchmarks/planner_estimates.py         # writes results/planner_estimates.json and the table in the docs
    python benchmarks/planner_estimates.py --check  # compares the table with the record
    python benchmarks/planner_estimates.py --folder demo-estimates   # leaves the study files there, for `mars`

Configurations and image processors are the published ones (`published/`), the studies those in docs/studies. Neither
weights nor tokenizers are needed: the demo's tokenizer stands in, over texts of its own vocabulary, so that texts have
the length stated here. The data: 3,048 rows in LLaVA's format, four questions on each of 762 pictures of 640 x 480.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from doc_table import DOCS, markdown, with_table
from PIL import Image
from transformers import AutoTokenizer

from flows.cli.cost import duration
from mars_core.demo import demo_backbone_path
from mars_core.planning.devices import DEVICES
from tasks.planning.cost import cost_on
from tasks.settings.study import read_study

HERE = Path(__file__).parent
RECORD = HERE / "results" / "planner_estimates.json"
PAGE, MARK = DOCS / "from-my-dataset-to-an-adapter.md", "planner estimates"
STUDIES = {
    "llava-onevision-0.5b": "llava-onevision-qwen2-0.5b-ov-hf",
    "qwen2.5-vl-3b": "Qwen2.5-VL-3B-Instruct",
}
PICTURES, QUESTIONS_EACH = 762, 4
QUESTION_WORDS, ANSWER_WORDS = 12, 60
SPECIALS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_TEMPLATE = (  # Qwen2.5-VL's, less videos and tools
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% for block in message['content'] %}{% if block['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ block['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> None:
    """Estimate and write, or check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare the docs with the record")
    parser.add_argument("--folder", type=Path, help="write data, checkpoints without weights and studies here")
    options = parser.parse_args()
    if options.check:
        sys.exit(_differs())
    if options.folder:
        print("\n".join(map(str, write_studies(options.folder))))
        return
    with tempfile.TemporaryDirectory() as folder:
        record = {file.stem: _estimates(file) for file in write_studies(Path(folder))}
    RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), MARK, table(record)), encoding="utf-8")
    print(table(record))


def _differs() -> str | None:
    text = PAGE.read_text(encoding="utf-8")
    same = with_table(text, MARK, table(json.loads(RECORD.read_text(encoding="utf-8")))) == text
    return None if same else f"{PAGE.name} and {RECORD.name} differ: run python benchmarks/planner_estimates.py"


def _estimates(file: Path) -> dict[str, Any]:
    config = read_study(file)
    return {device: cost_on(config, device) for device in DEVICES}


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table."""
    header = ["study", "GPU", "calibration", "memory", "runs at once", "final run", "memory"]
    rows = []
    for study, devices in record.items():
        for found in devices.values():
            calibration, final = found["calibration"], found["final"]
            rows.append(
                [
                    f"`{study}`",
                    found["device"].removeprefix("NVIDIA "),
                    duration(calibration["seconds"]),
                    _memory(calibration),
                    str(calibration["runs_at_once"]) if calibration["fits"] else "-",
                    duration(final["seconds"]),
                    _memory(final),
                ]
            )
    return markdown(header, rows)


def _memory(phase: dict[str, Any]) -> str:
    needed = f"{phase['memory_bytes']['total'] / 1e9:.0f} GB"
    return needed if phase["fits"] else f"{needed}: does not fit"


def write_studies(folder: Path) -> list[Path]:
    """Data, checkpoints without weights and the study files; returns the latter."""
    _write_data(folder / "data")
    files = []
    for study, published in STUDIES.items():
        _write_checkpoint(HERE / "published" / published, folder / published)
        settings = yaml.safe_load((DOCS / "studies" / f"{study}.yaml").read_text())
        settings["model"] = published
        files.append(folder / f"{study}.yaml")
        files[-1].write_text(yaml.safe_dump(settings, sort_keys=False))
    return files


def _write_checkpoint(published: Path, folder: Path) -> None:
    shutil.copytree(published, folder, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(demo_backbone_path())
    if "Qwen" in published.name:
        tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS}, replace_extra_special_tokens=False)
        tokenizer.chat_template = QWEN_TEMPLATE
    tokenizer.model_max_length = 1 << 20
    tokenizer.save_pretrained(folder)


def _write_data(folder: Path) -> None:
    draw = random.Random(0)
    words = ["green", "blue", "red", "animal", "top", "left", "right", "two", "ground", "picture"]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(PICTURES):
        blocks = bytes(draw.randrange(256) for _ in range(8 * 6 * 3))
        picture = Image.frombytes("RGB", (8, 6), blocks).resize((640, 480), Image.Resampling.NEAREST)
        picture.save(folder / "images" / f"{number}.png")
        for question in range(QUESTIONS_EACH):
            asked, answered = (" ".join(draw.choices(words, k=count)) for count in (QUESTION_WORDS, ANSWER_WORDS))
            talk = [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": answered}]
            rows.append({"id": f"{number}-{question}", "image": f"{number}.png", "conversations": talk})
    (folder / "train.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
