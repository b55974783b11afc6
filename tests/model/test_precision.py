"""`precision: auto`: bf16 exactly where this machine multiplies it faster."""

import time

import pytest
import torch

from dgl_scale.model import precision


@pytest.mark.parametrize(("seconds", "chosen"), [((1.0, 0.4), "bf16"), ((1.0, 0.9), "fp32"), ((1.0, 3.0), "fp32")])
def test_bfloat16_is_chosen_where_it_pays(monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], chosen: str) -> None:
    measured = dict(zip((torch.float32, torch.bfloat16), seconds, strict=True))
    monkeypatch.setattr(precision, "_product_seconds", measured.__getitem__)
    assert precision.fastest_precision(torch.device("cpu")) == chosen


def test_the_measurement_is_of_real_products() -> None:
    start = time.perf_counter()
    seconds = precision._product_seconds(torch.float32)
    assert 0 < seconds < time.perf_counter() - start
