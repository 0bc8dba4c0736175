"""How a checkpoint is loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Loading:
    """How a checkpoint is loaded.

    attn_implementation: name that transformers knows, None for its own choice. trust_remote_code: run code that lies in
    the checkpoint. four_bit: keep the linear layers of the base in 4 bits (NF4, double quantization), as QLoRA does.
    """

    attn_implementation: str | None = None
    trust_remote_code: bool = False
    four_bit: bool = False


AS_IT_IS = Loading()
"""In the dtype asked, without code of its own."""
