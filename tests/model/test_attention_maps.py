"""Attention maps are the weights that the features are made with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgl_scale.config import ModelConfig
from dgl_scale.errors import DataError
from dgl_scale.model import DGL, build_model
from dgl_scale.model.attention_maps import TextAttention, VideoAttention
from tests.reference.tiny_clip import clip_config, random_frames, random_tokens, write_config

COUNTS = {"num_frames": 3, "num_local_prompts": 2, "num_global_prompts": 5, "num_prefix_prompts": 4}


def build(folder: Path, latent_space: Any, dtype: torch.dtype = torch.float64, **options: Any) -> DGL:
    clip = clip_config(3, 2, image_size=9)
    return build_model(
        ModelConfig(clip=write_config(folder, clip), latent_space=latent_space, **{**COUNTS, **options}), seed=1, dtype=dtype
    )


def totals(video: VideoAttention, text: TextAttention) -> tuple[Tensor, Tensor]:
    return video.frames.sum(dim=-1) + video.global_tokens.sum(dim=-1), text.words.sum(dim=-1) + text.prefix.sum(dim=-1)


@pytest.mark.parametrize("layer", [-2, -1, 0])
@pytest.mark.parametrize("latent_space", ["linear", "transformer", None])
def test_weights_sum_to_one(tmp_path: Path, latent_space: str | None, layer: int) -> None:
    model = build(tmp_path, latent_space)
    tokens = random_tokens(7, 0)
    video, text = model.attention_maps(random_frames(2, 3, 0, size=9), tokens, layer)
    num_queries, num_globals = (1, 0) if latent_space is None else (5, 5)
    assert video.patches.shape == (2, num_queries, 3, 3, 3) and video.global_tokens.shape == (2, num_queries, num_globals)
    assert video.local_prompts.shape == (2, num_queries, 3, 0 if latent_space is None else 2)
    assert text.words.shape == (7, 11) and text.prefix.shape == (7, 0 if latent_space is None else 4)
    for total in totals(video, text):
        assert (total - 1).abs().max() < 1e-12
    positions = torch.arange(11)
    assert not text.words[positions > tokens.argmax(dim=1)[:, None]].any()


@pytest.mark.parametrize("latent_space", ["linear", "transformer"])
def test_they_reproduce_what_the_fast_path_mixes(tmp_path: Path, latent_space: str) -> None:
    """With one head, weights times values is the mixture that enters the last layer's output projection."""
    clip = clip_config(3, 2, image_size=9, head_width=14)
    clip["text_cfg"]["heads"] = 1
    model = build_model(ModelConfig(clip=write_config(tmp_path, clip), latent_space=latent_space, **COUNTS), seed=1, dtype=torch.float64)  # type: ignore[arg-type]
    frames, tokens = random_frames(2, 3, 0, size=9), random_tokens(7, 0)
    seen: dict[str, list[Tensor]] = {"values": [], "mixed": []}
    last = model.video.layers[-1]
    last.key_value.register_forward_hook(lambda _m, _i, output: seen["values"].append(output.chunk(2, dim=-1)[1]))  # type: ignore[union-attr]
    last.out.register_forward_pre_hook(lambda _m, inputs: seen["mixed"].append(inputs[0]))  # type: ignore[union-attr]
    with torch.no_grad():
        model.encode_video(frames)
    local, own, global_values = seen["values"]
    mixed = seen["mixed"][0][:, 0]
    video, _ = model.attention_maps(frames, tokens)
    of_patches = torch.einsum("btp,btpd->bd", video.patches[:, 0].flatten(2), own[:, :, 1:])
    of_class_tokens = torch.einsum("bt,btd->bd", video.class_tokens[:, 0], own[:, :, 0])
    of_locals = torch.einsum("btn,tnd->bd", video.local_prompts[:, 0], local.expand(3, -1, -1))
    of_globals = torch.einsum("bg,bgd->bd", video.global_tokens[:, 0], global_values)
    assert (of_patches + of_class_tokens + of_locals + of_globals - mixed).abs().max() < 1e-12


def test_a_changed_patch_changes_only_what_lies_behind_it(tmp_path: Path) -> None:
    """In the first layer, the weight on a patch depends on that patch and on nothing else but the sum."""
    clip = clip_config(image_size=9, head_width=14)  # of several heads each has a sum of its own
    model = build_model(ModelConfig(clip=write_config(tmp_path, clip), latent_space="linear", **COUNTS), seed=1, dtype=torch.float64)
    frames = random_frames(1, 3, 0, size=9)
    changed = frames.clone()
    changed[0, 1, :, 3:6, 6:9] += 1  # frame 1, second row of patches, last column
    one, other = (model.attention_maps(each, random_tokens(2, 0), 0)[0].patches[0, 0] for each in (frames, changed))
    ratio = other / one
    expected = ratio[0, 0, 0]
    ratio[1, 1, 2] = expected
    assert (ratio - expected).abs().max() < 1e-12
    assert (other[1, 1, 2] / one[1, 1, 2] - expected).abs() > 1e-6


def test_bfloat16_and_frames_of_equal_weight(tmp_path: Path) -> None:
    model = build(tmp_path, "linear", torch.bfloat16)
    frames = random_frames(1, 1, 0, torch.float32, size=9).expand(-1, 3, -1, -1, -1)
    video, text = model.attention_maps(frames, random_tokens(2, 0))
    assert video.patches.dtype == torch.float32
    assert (video.frames - video.frames[..., :1]).abs().max() < 1e-2  # equal frames, equal weights
    assert all((total - 1).abs().max() < 1e-5 for total in totals(video, text))


def test_a_layer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="layer 2 is not in both towers, which have 3 and 2 layers"):
        build(tmp_path, "linear").attention_maps(random_frames(1, 3, 0, size=9), random_tokens(1, 0), 2)
