"""GPUs by name: what their makers publish."""

from __future__ import annotations

from dataclasses import dataclass

UTILISATION = 0.25
"""Share of the peak that training is assumed to reach, where nothing was measured.

Full training of 7B vision-language models, with sequence packing, fused kernels and no padding, is reported at 0.30 to
0.40 on A800 (lmms-engine's MFU reference), and Llama 3 at 0.38 to 0.43. Small models, adapters and unfused kernels stay
below. Between 0.15 and 0.40 the time varies from 5/3 to 5/8 of what is predicted.
"""


@dataclass(frozen=True)
class Device:
    """A GPU.

    memory_bytes: as sold (GB of 10^9 bytes). bf16_flops, fp32_flops: dense peak per second, sums in fp32; fp32 without
    TF32, as PyTorch multiplies unless told otherwise. bf16_flops is None where there are no units for it.
    """

    label: str
    memory_bytes: int
    bf16_flops: float | None
    fp32_flops: float

    def peak_flops(self, dtype: str) -> float:
        """Peak per second of products in `dtype`; bf16 without units for it runs at the rate of fp32."""
        return self.bf16_flops if dtype == "bfloat16" and self.bf16_flops is not None else self.fp32_flops


DEVICES: dict[str, Device] = {  # NVIDIA's data sheets, without sparsity
    "h200": Device("NVIDIA H200 SXM", 141 * 10**9, 989e12, 67e12),
    "h100": Device("NVIDIA H100 SXM", 80 * 10**9, 989e12, 67e12),
    "a100-80gb": Device("NVIDIA A100 SXM 80 GB", 80 * 10**9, 312e12, 19.5e12),
    "l40s": Device("NVIDIA L40S", 48 * 10**9, 362e12, 91.6e12),
    "rtx4090": Device("NVIDIA GeForce RTX 4090", 24 * 10**9, 165e12, 82.6e12),
    "t4": Device("NVIDIA T4", 16 * 10**9, None, 8.1e12),
}


def device_named(name: str) -> Device:
    """Return a device of the table.

    Raises:
        ValueError: there is none of that name.
    """
    if name.lower() not in DEVICES:
        raise ValueError(f"device {name!r} is not in the planner's table: choose one of {', '.join(DEVICES)}")
    return DEVICES[name.lower()]
