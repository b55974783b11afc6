from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dgl_scale.config import ModelConfig, OptimConfig, TrainingConfig
from dgl_scale.model import build_model
from dgl_scale.training.deepspeed_config import deepspeed_config
from dgl_scale.training.optimizer import build_optimizer, learning_rate
from tests.reference.tiny_clip import clip_config, write_config


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


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        # 100 steps, 10 of warm-up, then 89 intervals of a cosine from 2e-3 to 1e-8.
        (0, 2e-4),
        (4, 1e-3),
        (9, 2e-3),
        (10, 2e-3),
        (32, 1e-8 + (2e-3 - 1e-8) * (1 + 0.7133192) / 2),  # cos(180 degrees x 22 / 89)
        (54, 1e-8 + (2e-3 - 1e-8) * (1 + 0.0176484) / 2),  # cos(180 degrees x 44 / 89)
        (55, 1e-8 + (2e-3 - 1e-8) * (1 - 0.0176484) / 2),
        (99, 1e-8),
    ],
)
def test_schedule_of_the_published_recipe(step: int, rate: float) -> None:
    assert learning_rate(step, 100, OptimConfig(lr=2e-3)) == pytest.approx(rate, rel=1e-6)


def parameters_of(latent_space: str, folder: Path) -> list[tuple[str, torch.nn.Parameter]]:
    clip = write_config(folder, clip_config())
    return build_model(ModelConfig(clip=clip, latent_space=latent_space, num_frames=2)).trainable_parameters()


@pytest.mark.parametrize(
    ("latent_space", "undecayed"),
    [
        ("linear", {"latent_space.prefix.bias", "latent_space.postfix.bias"}),
        (
            "transformer",
            {
                "latent_space.block.ln_1.bias",
                "latent_space.block.query_key_value.bias",
                "latent_space.block.out.bias",
                "latent_space.block.ln_2.bias",
                "latent_space.block.mlp_in.bias",
                "latent_space.block.mlp_out.bias",
                "latent_space.to_text.mlp_in.bias",
                "latent_space.to_text.mlp_out.bias",
            },
        ),
    ],
)
def test_groups_of_the_real_parameters(latent_space: str, undecayed: set[str], tmp_path: Path) -> None:
    parameters = parameters_of(latent_space, tmp_path)
    names = {id(parameter): name.removeprefix("prompts.") for name, parameter in parameters}
    optimizer = build_optimizer(parameters, OptimConfig())
    found = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert found == {0.2: set(names.values()) - undecayed, 0.0: undecayed}
    assert {"global_prompts", "latent_space.table"} <= found[0.2]
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.9, 0.98), 1e-6)}


@pytest.mark.parametrize(("bound", "given"), [(1.0, 1.0), (4.0, 4.0), (None, 0.0)])
def test_clipping_bound_reaches_deepspeed(bound: float | None, given: float) -> None:
    """0 is DeepSpeed's word for no clipping; that the bound acts is in test_engine.py."""
    training = TrainingConfig(global_batch_size=8, max_steps=1)
    assert deepspeed_config(training, OptimConfig(max_grad_norm=bound), 8, 1, 100)["gradient_clipping"] == given
    assert OptimConfig().max_grad_norm == 1.0
