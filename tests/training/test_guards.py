import math

import pytest
import torch

from dgl_scale.errors import DglError
from dgl_scale.training.guards import ExplosionGuard, FrozenWeights, check_finite_gradient, check_finite_loss, check_synchronised

KEYS = [f"video{i}" for i in range(11)]


def test_a_loss_that_is_not_finite_names_step_rank_and_samples() -> None:
    check_finite_loss(3.0, 7, [torch.ones(2)], KEYS)
    with pytest.raises(DglError, match=r"loss is nan at step 7; rank 0: samples video0, .*video7 …; lower optim.lr") as caught:
        check_finite_loss(math.nan, 7, [torch.ones(2), torch.tensor([1.0, math.nan])], KEYS)
    assert caught.value.is_on_all_ranks


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_stops_the_run(norm: float) -> None:
    check_finite_gradient(None, 3, KEYS)
    check_finite_gradient(2.0, 3, KEYS)
    with pytest.raises(DglError, match=rf"gradient's norm is {norm} at step 3 though the loss is finite; rank 0: samples video0"):
        check_finite_gradient(norm, 3, KEYS[:1])


def test_only_a_loss_that_stays_high_is_an_explosion() -> None:
    guard = ExplosionGuard(2.0, 16, patience=3)
    high = 2.1 * math.log(16)
    for step, loss in enumerate([high, high, 1.0, high, high]):
        guard.check(loss, step)
    with pytest.raises(DglError, match=r"above 5\.55 .* for 3 steps, it is 5\.822 at step 5"):
        guard.check(high, 5)


def test_without_a_factor_nothing_explodes() -> None:
    guard = ExplosionGuard(None, 16, patience=1)
    guard.check(1e30, 1)


def test_changed_frozen_weights_are_named() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).eval()
    model[0].requires_grad_(False)
    frozen = FrozenWeights(model)
    with torch.no_grad():
        model[1].weight.mul_(2)  # trained, so free to change
    frozen.check()
    with torch.no_grad():
        model[0].bias[1] = torch.nextafter(model[0].bias[1], torch.tensor(math.inf))
    with pytest.raises(DglError, match=r"frozen weights changed during training on rank 0: 0\.bias \(1 in all\)"):
        frozen.check()


def test_buffers_are_frozen_too() -> None:
    model = torch.nn.BatchNorm1d(2)
    frozen = FrozenWeights(model)
    model(torch.randn(5, 2))
    with pytest.raises(DglError, match="running_mean"):
        frozen.check()


def test_one_rank_agrees_with_itself() -> None:
    check_synchronised([("a", torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)))], 1)
