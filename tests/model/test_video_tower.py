"""What the video tower leaves uncomputed and where it reads its parameters."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dgl_scale.config import ModelConfig
from dgl_scale.model import DGL, build_model
from tests.reference.tiny_clip import clip_config, random_frames, random_tokens, write_config


def build(folder: Path, **options: Any) -> DGL:
    return build_model(ModelConfig(clip=write_config(folder, clip_config()), num_frames=3, **options), seed=1, dtype=torch.float64)


def rows_through(module: nn.Module, run: Callable[[], object]) -> list[int]:
    """How many vectors go through each `mlp_in` below `module` while `run` runs, layer by layer."""
    rows = []
    hooks = [
        layer.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[:-1].numel()))
        for name, layer in module.named_modules()
        if name.endswith("mlp_in")
    ]
    run()
    for hook in hooks:
        hook.remove()
    return rows


@pytest.mark.parametrize(
    ("video_feature", "last"),
    [("global_0", [2]), ("global_mean", [8]), ("frame_mean", [6]), ("global_and_frame_mean", [8, 6]), ("global_0_and_frame_mean", [2, 6])],
)
def test_mlps_see_no_prompts_and_in_the_last_layer_only_what_is_read(tmp_path: Path, video_feature: str, last: list[int]) -> None:
    model = build(tmp_path, video_feature=video_feature)
    rows = rows_through(model.video, lambda: model.encode_video(random_frames(2, 3, 0)))
    tokens, global_tokens = 2 * 3 * (1 + 4), 2 * 4
    assert rows == [tokens, global_tokens, tokens, global_tokens, *last]


def test_text_mlps_see_no_prompts_and_no_padding(tmp_path: Path) -> None:
    model = build(tmp_path)
    tokens = torch.tensor([[21, 1, 2, 3, 22, 0, 0, 0], [21, 1, 22, 0, 0, 0, 0, 0]])
    rows = rows_through(model.text, lambda: model.encode_text(tokens))
    assert rows == [1, 2 * 4, 2]  # the shared start token, four words each, then the end-of-text tokens


def test_no_gradient_enters_the_patch_embedding_or_the_first_layers_frame_keys(tmp_path: Path) -> None:
    model = build(tmp_path)
    outputs: list[bool] = []
    model.video.embedding.register_forward_hook(lambda _m, _i, output: outputs.append(output.requires_grad))
    model.video.layers[0].query.register_forward_hook(lambda _m, _i, output: outputs.append(output.requires_grad))
    assert model.encode_video(random_frames(2, 3, 0)).requires_grad
    assert outputs == [False, False, True]  # the frames' tokens, their queries, the global tokens' queries


def fill(parameter: Tensor, value: Tensor, *_: object) -> None:
    parameter.copy_(value)


@pytest.mark.parametrize("latent_space", ["linear", "transformer"])
def test_every_parameter_is_read_inside_its_own_module(tmp_path: Path, latent_space: str) -> None:
    """As under ZeRO-3: a parameter exists only while the module that owns it runs, and no output may alias it."""
    frames, tokens = random_frames(2, 3, 0), random_tokens(3, 0)
    with torch.no_grad():
        model = build(tmp_path, latent_space=latent_space)
        wanted = model(frames, tokens)
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                kept = parameter.detach().clone()
                module.register_forward_pre_hook(partial(fill, parameter, kept))
                module.register_forward_hook(partial(fill, parameter, torch.full_like(kept, torch.nan)))
                parameter.fill_(torch.nan)
        given = model(frames, tokens)
    assert all(torch.equal(one, other) for one, other in zip(given, wanted, strict=True))


def test_order_of_frames_matters_only_to_prompts_that_differ_by_frame(tmp_path: Path) -> None:
    frames = random_frames(2, 3, 0)
    reversed_frames = frames.flip(1)
    linear, transformer = build(tmp_path, latent_space="linear"), build(tmp_path, latent_space="transformer")

    def change(model: DGL) -> Tensor:
        return (model.encode_video(frames) - model.encode_video(reversed_frames)).abs().max()

    assert change(linear) < 1e-12
    assert change(transformer) > 1e-4
