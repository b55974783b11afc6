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
from dgl_scale.model.clip_shape import ClipShape
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


SUPPORTED = """
ViT-B-16 ViT-B-16-plus ViT-B-16-plus-240 ViT-B-16-quickgelu ViT-B-32 ViT-B-32-256 ViT-B-32-plus-256 ViT-B-32-quickgelu
ViT-H-14 ViT-H-14-378 ViT-H-14-378-quickgelu ViT-H-14-quickgelu ViT-H-16
ViT-L-14 ViT-L-14-280 ViT-L-14-336 ViT-L-14-336-quickgelu ViT-L-14-quickgelu ViT-L-16 ViT-L-16-320
ViT-M-16 ViT-M-16-alt ViT-M-32 ViT-M-32-alt ViT-S-16 ViT-S-16-alt ViT-S-32 ViT-S-32-alt
ViT-bigG-14 ViT-bigG-14-quickgelu ViT-e-14 ViT-g-14
"""
REFUSED = """
EVA01-g-14 EVA01-g-14-plus EVA02-B-16 EVA02-E-14 EVA02-E-14-plus EVA02-L-14 EVA02-L-14-336 MobileCLIP-B MobileCLIP-S1
MobileCLIP-S2 MobileCLIP2-B MobileCLIP2-L-14 MobileCLIP2-S0 MobileCLIP2-S2 MobileCLIP2-S3 MobileCLIP2-S4 PE-Core-B-16
PE-Core-L-14-336 PE-Core-S-16-384 PE-Core-T-16-384 PE-Core-bigG-14-448 RN101 RN101-quickgelu RN50 RN50-quickgelu RN50x16
RN50x16-quickgelu RN50x4 RN50x4-quickgelu RN50x64 RN50x64-quickgelu ViT-B-16-SigLIP ViT-B-16-SigLIP-256 ViT-B-16-SigLIP-384
ViT-B-16-SigLIP-512 ViT-B-16-SigLIP-i18n-256 ViT-B-16-SigLIP2 ViT-B-16-SigLIP2-256 ViT-B-16-SigLIP2-384 ViT-B-16-SigLIP2-512
ViT-B-32-SigLIP2-256 ViT-H-14-CLIPA ViT-H-14-CLIPA-336 ViT-H-14-worldwide ViT-H-14-worldwide-378 ViT-H-14-worldwide-quickgelu
ViT-L-14-CLIPA ViT-L-14-CLIPA-336 ViT-L-14-worldwide ViT-L-14-worldwide-quickgelu ViT-L-16-SigLIP-256 ViT-L-16-SigLIP-384
ViT-L-16-SigLIP2-256 ViT-L-16-SigLIP2-384 ViT-L-16-SigLIP2-512 ViT-SO400M-14-SigLIP ViT-SO400M-14-SigLIP-378
ViT-SO400M-14-SigLIP-384 ViT-SO400M-14-SigLIP2 ViT-SO400M-14-SigLIP2-378 ViT-SO400M-16-SigLIP-i18n-256 ViT-SO400M-16-SigLIP2-256
ViT-SO400M-16-SigLIP2-384 ViT-SO400M-16-SigLIP2-512 ViT-bigG-14-CLIPA ViT-bigG-14-CLIPA-336 ViT-bigG-14-worldwide
ViT-bigG-14-worldwide-378 ViT-gopt-16-SigLIP2-256 ViT-gopt-16-SigLIP2-384 ViTamin-B ViTamin-B-LTT ViTamin-L ViTamin-L-256
ViTamin-L-336 ViTamin-L-384 ViTamin-L2 ViTamin-L2-256 ViTamin-L2-336 ViTamin-L2-384 ViTamin-S ViTamin-S-LTT ViTamin-XL-256
ViTamin-XL-336 ViTamin-XL-384 coca_ViT-B-32 coca_ViT-L-14 coca_base coca_roberta-ViT-B-32 convnext_base convnext_base_w
convnext_base_w_320 convnext_large convnext_large_d convnext_large_d_320 convnext_small convnext_tiny convnext_xlarge
convnext_xxlarge convnext_xxlarge_320 mt5-base-ViT-B-32 mt5-xl-ViT-H-14 nllb-clip-base nllb-clip-base-siglip nllb-clip-large
nllb-clip-large-siglip roberta-ViT-B-32 swin_base_patch4_window7_224 vit_medium_patch16_gap_256 vit_relpos_medium_patch16_cls_224
xlm-roberta-base-ViT-B-32 xlm-roberta-large-ViT-H-14
"""


def trained_by_formula(config: ModelConfig, shape: ClipShape) -> int:
    """Parameters of the prompts with four of each kind, as the method counts them."""
    vision, text, layers = shape.vision.width, shape.text.width, shape.vision.num_layers
    if config.latent_space == "linear":
        return 4 * layers * vision + 2 * (vision * text + text) + 4 * vision
    table = (8 + 4 * config.num_frames) * layers * vision
    block = 12 * vision**2 + 13 * vision
    to_text = 2 * vision**2 + 2 * vision + 2 * vision * text + text
    return table + block + to_text + 4 * vision


def test_every_clip_of_open_clip_is_supported_or_refused_in_one_line() -> None:
    open_clip = import_open_clip()
    supported, refused = SUPPORTED.split(), REFUSED.split()
    assert sorted(open_clip.list_models()) == sorted(supported + refused), "open_clip has other models than these lists"
    for clip in supported:
        with torch.device("meta"):
            theirs = open_clip.CLIP(**open_clip.get_model_config(clip))
        # Layer scale is folded into the weights next to it.
        wanted = sum(parameter.numel() for name, parameter in theirs.named_parameters() if not name.endswith("gamma"))
        for latent_space in ("linear", "transformer"):
            model = build_model(ModelConfig(clip=clip, latent_space=latent_space, num_frames=3), device="meta")
            frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
            trained = sum(parameter.numel() for _, parameter in model.trainable_parameters())
            assert frozen + model.logit_scale.numel() == wanted, clip
            assert trained == trained_by_formula(model.config, model.shape), clip
    for clip in refused:
        with pytest.raises(ConfigError, match=r"supported are .* such as ViT-B-32-quickgelu") as refusal:
            build_model(ModelConfig(clip=clip), device="meta")
        assert clip in str(refusal.value) and "\n" not in str(refusal.value)


def test_every_pretrained_tag_has_one_activation_and_the_other_is_refused() -> None:
    """Over open_clip's whole registry: a tag is accepted under a name if and only if its mark is the name's activation."""
    open_clip = import_open_clip()
    supported, accepted = SUPPORTED.split(), set()
    for clip, tag in open_clip.list_pretrained():
        if clip not in supported:
            continue
        trained = bool(open_clip.get_pretrained_cfg(clip, tag).get("quick_gelu", False))
        if trained == bool(open_clip.get_model_config(clip).get("quick_gelu", False)):
            assert load_backbone(clip, tag, with_weights=False).shape.vision.activation == ("quick_gelu" if trained else "none")
            accepted.add((clip, tag))
        else:
            with pytest.raises(ConfigError, match=f"was trained with QuickGELU, which {clip} is not; set model.clip to {clip}-quickgelu$"):
                load_backbone(clip, tag, with_weights=False)
            load_backbone(f"{clip}-quickgelu", tag, with_weights=False)
        if not trained and f"{clip}-quickgelu" in supported:
            with pytest.raises(ConfigError, match=f"neither a file nor a tag of open_clip; tags of {clip}-quickgelu"):
                load_backbone(f"{clip}-quickgelu", tag, with_weights=False)
    for clip, tag in (("ViT-L-14-quickgelu", "openai"), ("ViT-H-14-quickgelu", "metaclip_fullcc"), ("ViT-H-14-378-quickgelu", "dfn5b")):
        assert (clip, tag) in accepted
    for clip, tag in (("ViT-L-14", "datacomp_xl_s13b_b90k"), ("ViT-bigG-14", "laion2b_s39b_b160k"), ("ViT-B-32", "laion2b_s34b_b79k")):
        assert (clip, tag) in accepted


def test_a_tag_that_open_clip_registers_under_a_name_of_the_other_activation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip = import_open_clip()
    plain = open_clip.get_pretrained_cfg("ViT-B-32", "laion2b_s34b_b79k")
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda clip, tag: plain)
    with pytest.raises(ConfigError, match=r"was trained with GELU, but ViT-B-32-quickgelu computes QuickGELU; set model.clip to ViT-B-32$"):
        load_backbone("ViT-B-32-quickgelu", "laion2b_s34b_b79k", with_weights=False)


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
    path = write_config(tmp_path, clip_config(quick_gelu=False))
    with pytest.raises(ConfigError, match=r"which .*clip\.json is not; set quick_gelu to true in that file"):
        load_backbone(path, str(weights))


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
