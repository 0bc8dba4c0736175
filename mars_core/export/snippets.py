"""How a model card says that its model is loaded: code that runs as it stands, in the model's own folder."""

from __future__ import annotations

HEADING = "## Load it"
HEARING_CLASS = "AutoModelForMultimodalLM"
ASK = """\
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=prompt, images=[Image.open("picture.png")], return_tensors="pt").to(model.device, model.dtype)
answer = model.generate(**inputs, max_new_tokens=64)
print(processor.batch_decode(answer[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])"""
ASK_ABOUT_SOUND = """\
rate = processor.feature_extractor.sampling_rate
sound = np.zeros(rate, dtype=np.float32)  # a second of silence: put your own sound here, one channel at that rate
messages = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What is said?"}]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=prompt, audio=[sound], sampling_rate=rate, return_tensors="pt").to(model.device, model.dtype)
answer = model.generate(**inputs, max_new_tokens=64)
print(processor.batch_decode(answer[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])"""
NEEDS = "With transformers 5{peft}; processors that also take videos need torchvision, as transformers says."


def load_adapter(model: str, dtype: str, four_bit: bool, trust_remote_code: bool) -> str:
    """The section of an adapter's card. model: hub id or folder of the base; dtype: of its weights."""
    quantized = ", BitsAndBytesConfig" if four_bit else ""
    code = f"""\
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor{quantized}

adapter = "."  # this folder, or its id on the Hub
processor = AutoProcessor.from_pretrained(adapter{trust_argument(trust_remote_code)})
base = AutoModelForImageTextToText.from_pretrained({_base_arguments(model, dtype, four_bit, trust_remote_code)})
model = PeftModel.from_pretrained(base, adapter).eval()

{ASK}"""
    needs = NEEDS.format(peft=" and PEFT" + (" and bitsandbytes" if four_bit else ""))
    merging = (
        "The base was in 4 bits when it was trained, so the adapter is not to be merged into other weights."
        if four_bit
        else "`mars export STUDY --merged DIR` makes one checkpoint of base and adapter."
    )
    return f"{HEADING}\n\n{needs}\n\n```python\n{code}\n```\n\n{merging}"


def load_merged(dtype: str, trust_remote_code: bool) -> str:
    """The section of a merged checkpoint's card."""
    trust = trust_argument(trust_remote_code)
    code = f"""\
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder, or its id on the Hub
processor = AutoProcessor.from_pretrained(folder{trust})
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.{dtype}{trust}).eval()

{ASK}"""
    return f"{HEADING}\n\n{NEEDS.format(peft='')}\n\n```python\n{code}\n```"


def about_sound(section: str) -> str:
    """A section for a model that hears rather than sees."""
    return (
        section.replace(ASK, ASK_ABOUT_SOUND)
        .replace("from PIL import Image\n", "")
        .replace("import torch\n", "import numpy as np\nimport torch\n")
        .replace("AutoModelForImageTextToText", HEARING_CLASS)
    )


def _base_arguments(model: str, dtype: str, four_bit: bool, trust_remote_code: bool) -> str:
    arguments = f"{_quoted(model)}, dtype=torch.{dtype}"
    if four_bit:
        arguments += (
            ", quantization_config=BitsAndBytesConfig(\n"
            '    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, '
            f"bnb_4bit_compute_dtype=torch.{dtype}\n)"
        )
    return arguments + trust_argument(trust_remote_code)


def trust_argument(trust_remote_code: bool) -> str:
    """The argument that lets a checkpoint's own code run; only the study's file can allow it."""
    return ", trust_remote_code=True" if trust_remote_code else ""


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
