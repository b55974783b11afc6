"""Bad input: one clear error, or it works."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dgl_scale.batch import normalise_frames
from dgl_scale.config import ModelConfig
from dgl_scale.errors import CheckpointError, DataError
from dgl_scale.model import DGL, build_model, load_prompts, save_prompts
from dgl_scale.model.backbone import load_backbone
from tests.reference import dgl_twin
from tests.reference.tiny_clip import clip_config, random_frames, random_tokens, write_config


def build(folder: Path, **options: Any) -> DGL:
    options = {"num_frames": 3, "num_local_prompts": 2, **options}
    return build_model(ModelConfig(clip=write_config(folder, clip_config()), **options), seed=1)


def pixels(lowest: int, highest: int) -> Tensor:
    """0-255 frames `[2, 3, 3, 6, 6]` that reach from one value to the other."""
    frames = torch.randint(lowest, highest + 1, (2, 3, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    frames[0, 0, 0, 0, :2] = torch.tensor([lowest, highest])
    return frames.to(torch.uint8)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 3, 3, 6, 6), dtype=np.float32), r"must be a tensor \[B, T, 3, 6, 6\], got ndarray"),
        (torch.zeros(3, 3, 6, 6), r"must be \[B, T, 3, 6, 6\], got \[3, 3, 6, 6\]"),
        (torch.zeros(2, 3, 3, 6, 7), r"must be \[B, T, 3, 6, 6\]"),
        (torch.zeros(2, 3, 6, 6, 3), r"must be \[B, T, 3, 6, 6\]"),
        (pixels(0, 255), "floating-point numbers, got torch.uint8; see normalise_frames"),
        (torch.zeros(2, 3, 3, 6, 6, dtype=torch.int64), "floating-point numbers, got torch.int64"),
        (torch.zeros(0, 3, 3, 6, 6), "no frames"),
        (torch.zeros(2, 0, 3, 6, 6), "no frames"),
        (pixels(0, 255).float(), r"from 0 to 255; normalise them .* \(0-255 pixels are not\)"),
        (pixels(0, 12)[:1].float(), r"from 0 to 12; normalise them"),
        (pixels(2, 3).half(), r"from 2 to 3; normalise them"),
        (-pixels(0, 40).float(), r"from -40 to -?0; normalise them"),
        (torch.full((2, 3, 3, 6, 6), float("nan")), "from nan to nan"),
        (torch.full((2, 3, 3, 6, 6), float("inf")), "from inf to inf"),
        (torch.zeros(2, 5, 3, 6, 6), "have 5 frames.*num_frames = 3"),
    ],
)
def test_refuses_wrong_frames(tmp_path: Path, frames: Any, message: str) -> None:
    model = build(tmp_path, latent_space="transformer")
    with pytest.raises(DataError, match=message) as refusal:
        model.encode_video(frames)
    assert "\n" not in str(refusal.value)
    with pytest.raises(DataError, match=message):
        model(frames, random_tokens(2, 0))


@pytest.mark.parametrize("frames", [pixels(0, 255), pixels(0, 12), pixels(0, 0), pixels(255, 255), pixels(200, 255)[:1], pixels(5, 5)])
def test_takes_whatever_is_normalised(tmp_path: Path, frames: Tensor) -> None:
    model = build(tmp_path)
    normalised = normalise_frames(frames, model.image_mean, model.image_std, torch.float32)
    assert torch.isfinite(model.encode_video(normalised)).all()


@pytest.mark.parametrize("latent_space", ["linear", None])
def test_any_number_of_frames_where_no_prompt_belongs_to_one(tmp_path: Path, latent_space: Any) -> None:
    model = build(tmp_path, latent_space=latent_space)
    for num_frames in (1, 7):
        assert model.encode_video(random_frames(2, num_frames, 0, torch.float32)).shape == (2, 11)
    assert build(tmp_path).frame_features(random_frames(2, 7, 0, torch.float32)).shape == (2, 7, 11)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[21, 5, 22]], "an int64 tensor .*, got list"),
        (torch.tensor([21, 5, 22]), r"int64 \[C, L\], got torch.int64 \[3\]"),
        (torch.tensor([[21.0, 22.0]]), "int64"),
        (torch.tensor([[21, 5, 22]], dtype=torch.int32), "int64"),
        (torch.zeros(0, 5, dtype=torch.int64), "C > 0"),
        (torch.tensor([[22]]), "2 <= L"),
        (torch.zeros(2, 14, dtype=torch.int64), "L <= 13"),
        (torch.tensor([[21, 5, 23]]), "from 5 to 23.* ids 0 to 22"),
        (torch.tensor([[21, -1, 22]]), "from -1"),
        (torch.tensor([[21, 4, 22], [21, 4, 3]]), "caption 1 .*no end-of-text"),
        (torch.tensor([[22, 4, 3]]), "caption 0 .*no end-of-text"),
        (torch.tensor([[21, 4, 22], [20, 4, 22]]), "start token"),
    ],
)
def test_refuses_wrong_tokens(tmp_path: Path, tokens: Any, message: str) -> None:
    model = build(tmp_path)
    with pytest.raises(DataError, match=message) as refusal:
        model.encode_text(tokens)
    assert "\n" not in str(refusal.value)
    with pytest.raises(DataError, match=message):
        model(random_frames(2, 3, 0, torch.float32), tokens)


@pytest.mark.parametrize("latent_space", ["linear", "transformer"])
def test_prompts_and_a_full_caption_may_exceed_the_context(tmp_path: Path, latent_space: Any) -> None:
    clip = clip_config()
    counts = {"num_local_prompts": 2, "num_prefix_prompts": 9, "num_postfix_prompts": 8}
    model = build_model(ModelConfig(clip=write_config(tmp_path, clip), latent_space=latent_space, num_frames=3, **counts), seed=1)
    tokens = torch.randint(1, 21, (2, model.context_length), generator=torch.Generator().manual_seed(1))
    tokens[:, 0], tokens[:, -1] = 21, 22
    state = load_backbone(model.config.clip, None, seed=1).state
    assert state is not None
    wanted = dgl_twin.text_features(clip, state, model.prompts_state(), model.config.model_dump(), tokens)
    assert (model.encode_text(tokens) - wanted).abs().max() < 1e-5


def test_prompts_with_nan_are_neither_loaded_nor_saved(tmp_path: Path) -> None:
    model, path = build(tmp_path), tmp_path / "prompts.safetensors"
    save_prompts(model, path)
    before = {name: tensor.clone() for name, tensor in model.prompts_state().items()}
    header = path.read_bytes()
    tensors = load_file(path)
    tensors["latent_space.table"][0, 0, 0] = torch.nan
    save_file(tensors, tmp_path / "tensors.safetensors")
    # The first eight bytes say how long the header is; behind it lie the tensors.
    start = 8 + int.from_bytes(header[:8], "little")
    other = (tmp_path / "tensors.safetensors").read_bytes()
    path.write_bytes(header[:start] + other[8 + int.from_bytes(other[:8], "little") :])
    with pytest.raises(CheckpointError, match=r"prompts\.safetensors: prompts hold NaN or infinity in latent_space\.table"):
        load_prompts(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.prompts_state().items())
    model.prompts_state()["global_prompts"][0, 0] = torch.inf
    with pytest.raises(CheckpointError, match="NaN or infinity in global_prompts and are not saved"):
        save_prompts(model, path)
