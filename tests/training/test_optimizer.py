import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dgl_scale.config import OptimConfig
from dgl_scale.training.optimizer import build_optimizer, learning_rate


def test_schedule_by_hand() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.0, warmup_fraction=0.2)
    rates = [learning_rate(step, 10, config) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[9] == pytest.approx(0.0)
    assert rates[2:] == sorted(rates[2:], reverse=True)


@given(total=st.integers(1, 500), warmup=st.floats(0, 1), lr=st.floats(1e-6, 1))
def test_schedule_stays_within_bounds(total: int, warmup: float, lr: float) -> None:
    config = OptimConfig(lr=lr, warmup_fraction=warmup, min_lr=1e-8)
    for step in range(total):
        assert 0 < learning_rate(step, total, config) <= lr * (1 + 1e-12)


def test_biases_are_not_decayed() -> None:
    layer = torch.nn.Linear(2, 3)
    groups = build_optimizer(list(layer.named_parameters()), OptimConfig()).param_groups
    assert [(group["weight_decay"], len(group["params"][0].shape)) for group in groups] == [(0.2, 2), (0.0, 1)]
