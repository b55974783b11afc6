"""Baselines that are no plain ViT: their features are open_clip's own, averaged over frames."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dgl_scale.config import ModelConfig
from dgl_scale.errors import CheckpointError, ConfigError, DataError
from dgl_scale.model.backbone import supports_prompts
from dgl_scale.model.frozen_clip import FrozenClip

TEXT = {"context_length": 16, "vocab_size": 512, "width": 32, "heads": 2, "layers": 1}
RESNET = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": TEXT,
}
CUSTOM = {
    "embed_dim": 24,
    "custom_text": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "pool_type": "avg"},
    "text_cfg": TEXT,
}


def build(folder: Path, config: dict[str, Any], pretrained: str | None = None) -> FrozenClip:
    path = folder / "model.json"
    path.write_text(json.dumps(config))
    assert not supports_prompts(str(path))
    model = ModelConfig(clip=str(path), pretrained=pretrained, latent_space=None, num_frames=2)
    return FrozenClip(model, seed=3, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("config", [RESNET, CUSTOM])
def test_features_are_those_of_open_clip(tmp_path: Path, config: dict[str, Any]) -> None:
    model = build(tmp_path, config)
    frames, tokens = torch.randn(3, 2, 3, 32, 32), torch.tensor([[1, 5, 511, 0], [1, 511, 0, 0]])
    with torch.no_grad():
        video, text = model.encode_video(frames), model.encode_text(tokens)
        for i in range(3):
            of_frames = F.normalize(model.clip.encode_image(frames[i]), dim=-1)
            torch.testing.assert_close(video[i], F.normalize(of_frames.mean(dim=0), dim=-1))
        padded = torch.zeros(2, 16, dtype=torch.int64)
        padded[:, :4] = tokens
        torch.testing.assert_close(text, F.normalize(model.clip.encode_text(padded), dim=-1))
    assert video.shape == (3, 24)
    assert model.trainable_parameters() == []
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_seed_and_the_weights_decide_the_digest(tmp_path: Path) -> None:
    first = build(tmp_path, RESNET)
    assert build(tmp_path, RESNET).backbone_digest == first.backbone_digest
    state = {name: tensor.clone() for name, tensor in first.clip.state_dict().items()}
    state["visual.conv1.weight"] += 1
    save_file(state, tmp_path / "weights.safetensors")
    changed = build(tmp_path, RESNET, str(tmp_path / "weights.safetensors"))
    assert changed.backbone_digest != first.backbone_digest
    torch.testing.assert_close(changed.clip.visual.conv1.weight, state["visual.conv1.weight"])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_file({"logit_scale": torch.tensor(1.0)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"weights .*weights.safetensors are not of this model: Missing key"):
        build(tmp_path, RESNET, str(tmp_path / "weights.safetensors"))
    with pytest.raises(ConfigError, match="cannot be built here"):
        build(tmp_path, {**RESNET, "vision_cfg": {**RESNET["vision_cfg"], "timm_model_name": "no_such_model"}})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="32 by 64 pixels"):
        build(tmp_path, {**CUSTOM, "vision_cfg": {**CUSTOM["vision_cfg"], "image_size": [32, 64]}})  # type: ignore[dict-item]
    with pytest.raises(DataError, match="captions have 17 positions"):
        build(tmp_path, RESNET).encode_text(torch.ones(1, 17, dtype=torch.int64))


def test_plain_vits_take_prompts_and_others_do_not() -> None:
    assert supports_prompts("ViT-B-32-quickgelu")
    assert not supports_prompts("RN50")
    assert not supports_prompts("convnext_base")
    assert not supports_prompts("coca_ViT-B-32")
    with pytest.raises(ConfigError, match="did you mean"):
        supports_prompts("RN5")
