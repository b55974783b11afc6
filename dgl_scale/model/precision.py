"""Which compute type is fastest here: measured on a CPU, asked on a GPU."""

import time
from typing import Literal

import torch
import torch.nn.functional as F

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Rounding to eight bits must pay for itself: a CPU that multiplies bfloat16 natively is 2 to 5 times faster at it.
_WORTH_IT = 1.5
_ROWS, _WIDTH, _TRIES = 512, 768, 5


def fastest_precision(device: torch.device) -> Precision:
    """bf16 where the device multiplies it natively, else fp16 on a GPU and fp32 on a CPU.

    On a CPU it is measured, in about 0.1 s, on a product of the size of a ViT-B layer.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        return "bf16"  # asked on a machine without a GPU for workers that have one: every one since 2020 does
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if _product_seconds(torch.float32) > _WORTH_IT * _product_seconds(torch.bfloat16) else "fp32"


def _product_seconds(dtype: torch.dtype) -> float:
    """The fastest of a few linear layers on the CPU."""
    x, weight = torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)
    seconds = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        F.linear(x, weight)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
