"""Which CLIPs are accepted, and that the frozen towers compute what open_clip computes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dgl_scale.config import ModelConfig
from dgl_scale.errors import CheckpointError, ConfigError
from dgl_scale.model import build_model
from dgl_scale.model.backbone import OPENAI_MEAN, load_backbone
from dgl_scale.torchvision_import import import_open_clip
from tests.reference.tiny_clip import clip_config, random_frames, random_tokens, write_config


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize(
    "vision",
    [
        {},
        {"ls_init_value": 0.3},
        {"no_ln_pre": True},
        {"norm_kwargs": {"eps": 1e-3}},
        {"act_kwargs": {}},
        {"pos_embed_type": "sin_cos_2d", "width": 16, "head_width": 8},
        {"patch_dropout": 0.5},
        {"mlp_ratio": 2.5},
    ],
)
def test_frozen_features_are_those_of_open_clip(tmp_path: Path, vision: dict[str, Any], quick_gelu: bool) -> None:
    clip = clip_config(quick_gelu=quick_gelu, **vision)
    path = write_config(tmp_path, clip)
    model = build_model(ModelConfig(clip=path, latent_space=None), seed=3)
    theirs = import_open_clip().CLIP(**clip)
    state = load_backbone(path, None, seed=3).state
    assert state is not None
    theirs.load_state_dict(state)
    theirs.eval()
    frames, tokens = random_frames(2, 3, 1, torch.float32), random_tokens(5, 1, length=13)
    with torch.no_grad():
        frame_features = theirs.encode_image(frames.flatten(0, 1), normalize=True).unflatten(0, (2, 3))
        text_features = theirs.encode_text(tokens, normalize=True)
    assert (model.frame_features(frames) - frame_features).abs().max() < 1e-5
    assert (model.encode_text(tokens) - text_features).abs().max() < 1e-5
    video_features = torch.nn.functional.normalize(frame_features.mean(dim=1), dim=1)
    assert (model.encode_video(frames) - video_features).abs().max() < 1e-5


def test_tanh_gelu_is_followed(tmp_path: Path) -> None:
    clip = clip_config(quick_gelu=False, act_kwargs={"approximate": "tanh"})
    assert load_backbone(write_config(tmp_path, clip), None).shape.vision.activation == "tanh"
    assert load_backbone(write_config(tmp_path, clip), None).shape.text.activation == "none"


def test_random_weights_follow_the_seed(tmp_path: Path) -> None:
    path = write_config(tmp_path, clip_config())
    one, same, other = (load_backbone(path, None, seed=seed).state for seed in (1, 1, 2))
    assert one is not None and same is not None and other is not None
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["visual.proj"], other["visual.proj"])


@pytest.mark.parametrize(
    "clip",
    [
        "RN50",
        "convnext_base",
        "ViT-B-16-SigLIP",
        "ViT-L-14-CLIPA",
        "ViT-L-14-worldwide",
        "coca_ViT-B-32",
        "roberta-ViT-B-32",
        "ViTamin-S",
        "EVA02-B-16",
        "MobileCLIP-S1",
    ],
)
def test_refuses_other_models_in_one_line(clip: str) -> None:
    with pytest.raises(ConfigError, match=r"supported are .* such as ViT-B-32-quickgelu") as refusal:
        build_model(ModelConfig(clip=clip), device="meta")
    assert "\n" not in str(refusal.value)
    assert clip in str(refusal.value)


@pytest.mark.parametrize("clip", ["ViT-B-16", "ViT-B-16-plus-240", "ViT-H-14", "ViT-L-14-336", "ViT-M-16-alt", "ViT-g-14", "ViT-e-14"])
def test_accepts_plain_vits_by_name(clip: str) -> None:
    model = build_model(ModelConfig(clip=clip, num_frames=2), device="meta")
    frames = torch.empty(1, 2, 3, model.image_size, model.image_size, device="meta")
    assert model.encode_video(frames).shape == (1, model.embed_dim)


@pytest.mark.parametrize("clip", ["ViT-B-31", "hf-hub:some/model", "local-dir:somewhere", "ViT-B/32", ""])
def test_refuses_unknown_names(clip: str) -> None:
    with pytest.raises(ConfigError, match="neither a model of open_clip nor a model-config file"):
        load_backbone(clip, None)
    with pytest.raises(ConfigError, match=r"did you mean ViT-B-32-quickgelu\?"):
        load_backbone("ViT-B-32-quickgleu", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 7}, "7 by 3"),
        ({"image_size": [6, 6]}, "square"),
        ({"width": 15}, "heads do not divide the widths 15 and 15"),
        ({"qk_norm": True}, "qk_norm = True in vision_cfg"),
        ({"pool_type": "avg"}, "pool_type = 'avg' in vision_cfg"),
        ({"no_such_key": 1}, "no_such_key"),
    ],
)
def test_refuses_vision_settings_it_does_not_follow(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_backbone(write_config(tmp_path, clip_config(**change)), None)


def test_refuses_files_that_are_no_model_config(tmp_path: Path) -> None:
    path = tmp_path / "clip.json"
    with pytest.raises(ConfigError, match="cannot read"):
        load_backbone(str(path), None)
    path.write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_backbone(str(path), None)
    path.write_text("[1, 2]")
    with pytest.raises(ConfigError, match="must hold a mapping"):
        load_backbone(str(path), None)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="not a plain CLIP"):
        load_backbone(str(path), None)


def test_reads_a_hub_config_with_its_preprocessing(tmp_path: Path) -> None:
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": clip_config(), "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}}))
    model = build_model(ModelConfig(clip=str(path), latent_space=None))
    assert model.image_mean == (0.5, 0.4, 0.3)
    assert model.image_std == (0.2, 0.2, 0.1)
    plain = build_model(ModelConfig(clip=write_config(tmp_path, clip_config()), latent_space=None))
    assert plain.image_mean == OPENAI_MEAN


def test_ignores_how_captions_are_tokenized(tmp_path: Path) -> None:
    clip = clip_config()
    clip["text_cfg"] |= {"tokenizer_kwargs": {"bpe_path": "anything"}, "tokenizer_mode": "simple"}
    assert load_backbone(write_config(tmp_path, clip), None).shape.vocab_size == 23


def test_unknown_tags_and_wrong_activations_are_refused_with_the_right_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tags of ViT-B-32: .*laion2b"):
        load_backbone("ViT-B-32", "no_such_tag")
    with pytest.raises(ConfigError, match="open_clip has no tags for"):
        load_backbone(write_config(tmp_path, clip_config()), "openai")
    with pytest.raises(ConfigError, match=r"trained with QuickGELU, which ViT-L-14 is not; set model.clip to ViT-L-14-quickgelu"):
        load_backbone("ViT-L-14", "openai")


def test_openai_files_need_quick_gelu(tmp_path: Path) -> None:
    weights = tmp_path / "ViT-L-14.pt"
    torch.jit.script(torch.nn.Linear(2, 3)).save(weights)
    with pytest.raises(ConfigError, match=r"ViT-L-14\.pt was trained with QuickGELU, .* set model\.clip to ViT-L-14-quickgelu"):
        load_backbone("ViT-L-14", str(weights))


def test_weights_that_cannot_be_fetched_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(import_open_clip(), "download_pretrained", refuse)
    with pytest.raises(CheckpointError, match=r"cannot fetch weights openai .*no route.*path of a weights file") as refusal:
        load_backbone("ViT-B-32-quickgelu", "openai")
    assert "\n" not in str(refusal.value)


def test_open_clip_imports_beside_a_torchvision_without_operators() -> None:
    code = (
        "from dgl_scale.torchvision_import import import_open_clip; import_open_clip(); import_open_clip(); import torchvision.transforms"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
