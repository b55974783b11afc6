"""Peak rates of known GPUs, for the model FLOP utilisation: model operations a second over what the device could do."""

import torch

# Dense peaks from the vendors' data sheets, in TFLOP/s: 16-bit tensor cores, and float32 (TF32 is off by default in torch).
_PEAK_TFLOPS = {
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "A40": (150.0, 37.4),
    "A10": (125.0, 31.2),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
}


def peak_tflops(device_name: str, dtype: torch.dtype) -> float | None:
    """The peak of a GPU by the name that CUDA gives it; None for one that is not known, never a guess."""
    words = device_name.replace("-", " ").split()
    for name, (half, single) in _PEAK_TFLOPS.items():
        if all(word in words for word in name.split()):
            return single if dtype == torch.float32 else half
    return None
