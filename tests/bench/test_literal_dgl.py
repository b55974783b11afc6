"""The rival of the benchmark computes the same features and gradients, so that their times can be compared."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dgl_scale.bench.literal_dgl import LiteralDGL
from dgl_scale.config import ModelConfig
from dgl_scale.model import build_model
from dgl_scale.model.backbone import load_backbone
from tests.reference.tiny_clip import clip_config, random_frames, random_tokens, write_config


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("latent_space", ["linear", "transformer"])
def test_same_features_and_gradients(tmp_path: Path, latent_space: str, quick_gelu: bool) -> None:
    path = write_config(tmp_path, clip_config(3, 3, quick_gelu=quick_gelu))
    config = ModelConfig(clip=path, latent_space=latent_space, num_frames=5)  # type: ignore[arg-type]
    model = build_model(config, seed=2, dtype=torch.float64)
    state = load_backbone(path, None, seed=2).state
    assert state is not None
    literal = LiteralDGL(config, model.shape, {name: value.double() for name, value in state.items()}, model.prompts_state())
    frames, tokens = random_frames(3, 5, 1), random_tokens(3, 1)
    for video, text in (model(frames, tokens), literal(frames, tokens)):
        similarity = 100 * text.double() @ video.double().T
        F.cross_entropy(similarity, torch.arange(3)).backward()
    ours, theirs = model(frames, tokens), literal(frames, tokens)
    assert (ours[0] - theirs[0]).abs().max() < 1e-6  # the rival normalises in float32
    assert (ours[1] - theirs[1]).abs().max() < 1e-6
    for name, parameter in model.trainable_parameters():
        rival = literal.prompts[name.removeprefix("prompts.").replace(".", "/")].grad
        if parameter.grad is None:
            assert rival is None or not rival.any()
            continue
        assert rival is not None
        assert (parameter.grad - rival).abs().max() < 1e-4 * parameter.grad.abs().max(), name
