"""Compiled layers and attention kernels: same numbers, no graph breaks, few compilations, never the slow kernel."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dgl_scale.bench.train_step import random_batch, train_step
from dgl_scale.config import ModelConfig
from dgl_scale.model import DGL, build_model, clip_layers
from tests.reference.tiny_clip import clip_config, random_frames, random_tokens, write_config

CPU = torch.device("cpu")


class CalledOperators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("latent_space", ["linear", "transformer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_a_real_head_size_never_takes_the_plain_kernel(tmp_path: Path, latent_space: Any, dtype: torch.dtype) -> None:
    clip = clip_config()
    clip["vision_cfg"] |= {"width": 128, "head_width": 64}
    clip["text_cfg"] |= {"width": 64, "heads": 1}
    model = build_model(ModelConfig(clip=write_config(tmp_path, clip), latent_space=latent_space, num_frames=3), dtype=dtype)
    with CalledOperators() as called:
        train_step(model, *random_batch(model, 2, 3, 9, dtype, CPU))()
    attention = {name for name in called.names if "attention" in name}
    assert attention == {
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    }
    assert not any("softmax" in name and "log" not in name for name in called.names)


def test_compiled_layers_give_the_same_and_are_compiled_once_a_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Graphs and when they are made are the same for every backend; this one spares the suite a minute of g++.
    monkeypatch.setattr(clip_layers, "_COMPILER", "aot_eager")
    clip_layers._compiled.cache_clear()
    config = ModelConfig(clip=write_config(tmp_path, clip_config(3, 3)), latent_space="linear", num_frames=3)
    plain, compiled = build_model(config, seed=1), build_model(config, seed=1)
    compiled.set_execution(compile=True)
    frames, tokens = random_frames(2, 3, 1, torch.float32), random_tokens(2, 1)
    tokens[:, 1:9] = torch.where(tokens[:, 1:9] == 22, 3, tokens[:, 1:9]).clamp(min=1)
    tokens[:, 5:], tokens[:, 5] = 0, 22
    wanted, given = gradients(plain, frames, tokens), gradients(compiled, frames, tokens)
    assert all((one - other).abs().max() < 1e-5 * max(1, one.abs().max()) for one, other in zip(wanted, given, strict=True))
    compilations = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    longer = tokens.clone()
    longer[:, 5], longer[:, 7] = 4, 22  # another length of the same bucket
    gradients(compiled, frames.flip(0), longer)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compilations > 0
    assert not torch._dynamo.utils.counters["graph_break"]
    clip_layers._compiled.cache_clear()


def gradients(model: DGL, frames: torch.Tensor, tokens: torch.Tensor) -> list[torch.Tensor]:
    video, text = model(frames, tokens)
    (video @ text.T).diagonal().sum().backward()
    found = [parameter.grad for _, parameter in model.trainable_parameters() if parameter.grad is not None]
    model.zero_grad(set_to_none=True)
    return [video.detach(), text.detach(), *found]
