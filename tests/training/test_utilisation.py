import pytest
import torch

from dgl_scale.training.utilisation import peak_tflops


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.0),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756.0),
        ("NVIDIA H200", torch.float32, 67.0),
        ("NVIDIA A100-SXM4-80GB", torch.float16, 312.0),
        ("Tesla V100-SXM2-16GB", torch.float16, 125.0),
        ("NVIDIA L40S", torch.bfloat16, 362.0),
        ("NVIDIA L40", torch.bfloat16, None),
        ("NVIDIA GeForce RTX 9090", torch.bfloat16, None),
    ],
)
def test_peaks_are_of_the_data_sheets_or_unknown(name: str, dtype: torch.dtype, expected: float | None) -> None:
    assert peak_tflops(name, dtype) == expected
