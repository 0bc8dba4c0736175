"""A run's adapter as PEFT stores one: `PeftModel.from_pretrained` reads the folder."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from mars_core.models.lora import lora_config
from mars_core.models.partition import Partition
from mars_core.packing.adapters import layout_of, to_peft
from mars_core.ranks import Alpha, Ranks


def save_adapter(
    flat: Tensor, partition: Partition, ranks: Ranks, folder: Path, *, model_id: str, alpha: Alpha
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` of flat weights into an existing folder."""
    config = lora_config(partition, ranks, alpha=alpha)
    config.base_model_name_or_path = model_id
    config.inference_mode = True
    config.save_pretrained(str(folder))
    weights = to_peft(flat, layout_of(partition, ranks))
    # PEFT leaves the adapter's name out of the names it stores.
    stored = {name.replace(".default.", "."): weight.contiguous() for name, weight in weights.items()}
    save_file(stored, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
