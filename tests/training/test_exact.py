"""The gradient of the global batch, however it is cut into ranks and micro-batches, through the real step and the real model."""

import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from dgl_scale.training.loss import symmetric_contrastive_loss
from dgl_scale.training.step import to_device
from tests.reference.tiny_clip import clip_config, write_config
from tests.training.exact_rank import global_batch, inputs_of, model_of
from tests.training.local_ranks import run_ranks

SCRIPT = Path(__file__).with_name("exact_rank.py")


@cache
def by_plain_torch(clip: str, variant: str, dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    model = model_of(clip, variant, dtype)
    frames, tokens = to_device(inputs_of(model), global_batch(), torch.float32)
    video, text = model(frames.to(dtype), tokens)
    loss, _ = symmetric_contrastive_loss(text, video, 20.0)
    loss.backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.trainable_parameters()}
    return loss.item(), gradients


def by_ranks(clip: str, world: int, micro: int, output: Path) -> dict:
    run_ranks(world, [sys.executable, str(SCRIPT), clip, str(output), str(micro)])
    return torch.load(output, weights_only=True)


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    whole, true = (torch.cat([parts[name].double().flatten() for name in expected]) for parts in (found, expected))
    return float((whole - true).norm() / true.norm())


@pytest.mark.slow
@pytest.mark.parametrize(("world", "micro", "accumulation"), [(1, 24, 1), (2, 4, 3), (3, 8, 1), (4, 2, 3)])
def test_every_split_gives_the_gradient_of_the_global_batch(tmp_path: Path, world: int, micro: int, accumulation: int) -> None:
    """Through the engine at ZeRO 0 to 3, and what ZeRO holds of frozen weights on the way."""
    clip = write_config(tmp_path, clip_config())
    results = by_ranks(clip, world, micro, tmp_path / "found.pt")
    assert len(results) == 8
    for key, found in results.items():
        loss, gradients = by_plain_torch(clip, key.split("/")[0], torch.float64)
        assert found["loss"] == pytest.approx(loss, rel=1e-6)
        assert relative_error(found["gradients"], gradients) < 1e-6, key
        # A part that is small beside the whole, such as a bias, has a looser bound of its own.
        for name, gradient in gradients.items():
            assert float((found["gradients"][name] - gradient).norm()) <= 5e-6 * float(gradient.norm()), f"{key}: {name}"
        # Feature caching costs one more forward pass of each micro-batch, and only where there are several.
        assert found["forwards"] == (1 if accumulation == 1 else 2 * accumulation)
        assert found["optimized"] == found["checkpointed"] == found["trained"]
        stage, padding = int(key[-1]), world * 8 * len(gradients)
        if stage in (1, 2):
            # Each rank updates its share of the trained numbers and of nothing else.
            assert abs(found["partition"] - found["trained"] / world) <= padding
        assert (found["frozen_here"] < found["frozen"]) == (stage == 3 and world > 1)
        if stage == 3:
            assert abs(found["frozen_here"] - found["frozen"] / world) <= world * found["num_frozen_tensors"]
