"""What this machine's matrix products reach: the limit that a step of DGL is measured against."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from dgl_scale.model.clip_shape import TowerShape


def tower_products(tower: TowerShape, rows: int, dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], None], float]:
    """The linear layers of one vision layer and the gradients of their inputs, alone: a function, and its operations.

    Args:
        tower: whose widths.
        rows: tokens that go through a layer, B * T * (1 + P).
        dtype: compute type.
        device: where.
    """
    width, hidden = tower.width, tower.mlp_width
    sizes = ((width, width), (width, 2 * width), (width, width), (width, hidden), (hidden, width))
    operands = [
        (_random(rows, inputs, dtype, device), _random(outputs, inputs, dtype, device), _random(1, outputs, dtype, device)[0])
        for inputs, outputs in sizes
    ]
    gradients = {outputs: _random(rows, outputs, dtype, device) for _, outputs in sizes}

    def run() -> None:
        for x, weight, bias in operands:
            F.linear(x, weight, bias)
            gradients[len(weight)] @ weight

    return run, sum(4.0 * rows * inputs * outputs for inputs, outputs in sizes)


def _random(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(rows, columns, device=device).to(dtype)
