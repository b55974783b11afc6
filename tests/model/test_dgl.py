"""The lean model against the literal twin, features and every gradient; inputs, types, sizes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from dgl_scale.config import ModelConfig
from dgl_scale.errors import CheckpointError, ConfigError
from dgl_scale.model import DGL, build_model
from dgl_scale.model.backbone import load_backbone
from dgl_scale.model.prompts import num_reached
from tests.reference import dgl_twin
from tests.reference.tiny_clip import clip_config, random_frames, random_tokens, write_config

VIDEO_FEATURES = ("global_0", "global_mean", "frame_mean", "global_and_frame_mean", "global_0_and_frame_mean")
COUNTS = {"num_frames": 3, "num_local_prompts": 2, "num_global_prompts": 3, "num_prefix_prompts": 4, "num_postfix_prompts": 1}


def build(folder: Path, clip: dict[str, Any], *, seed: int = 1, dtype: torch.dtype = torch.float64, **options: Any) -> DGL:
    return build_model(ModelConfig(clip=write_config(folder, clip), **{**COUNTS, **options}), seed=seed, dtype=dtype)


def contrastive(similarity: Tensor) -> Tensor:
    target = torch.arange(len(similarity))
    return F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)


def compare(model: DGL, clip: dict[str, Any], *, seed: int, num_frames: int, tolerance: float) -> None:
    """Features, similarities and the gradient of every prompt, the twin computing in float64."""
    frames, tokens = random_frames(2, num_frames, seed), random_tokens(2, seed)
    state = load_backbone(model.config.clip, None, seed=1).state
    assert state is not None
    wide = {name: tensor.double() for name, tensor in state.items()}
    prompts = {name: tensor.double().requires_grad_() for name, tensor in model.prompts_state().items()}
    options = model.config.model_dump()
    twin_video = dgl_twin.video_features(clip, wide, prompts, options, frames)
    twin_text = dgl_twin.text_features(clip, wide, prompts, options, tokens)
    twin_similarity = dgl_twin.similarity(wide, twin_text, twin_video)
    video, text = model(frames.to(model.video.dtype), tokens)
    similarity = model.similarity(text, video)
    assert (video - twin_video).abs().max() < tolerance
    assert (text - twin_text).abs().max() < tolerance
    assert (similarity - twin_similarity).abs().max() < 20 * tolerance
    if not prompts:
        return
    contrastive(twin_similarity).backward()
    contrastive(similarity).backward()
    for name, parameter in model.trainable_parameters():
        given = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        wanted = prompts[name.removeprefix("prompts.")].grad
        wanted = torch.zeros_like(given) if wanted is None else wanted
        assert (given - wanted).abs().max() < 20 * tolerance, name


@pytest.mark.parametrize("video_feature", VIDEO_FEATURES)
@pytest.mark.parametrize("latent_space", ["linear", "transformer"])
def test_equals_the_twin_for_every_video_feature(tmp_path: Path, latent_space: str, video_feature: str) -> None:
    clip = clip_config()
    model = build(tmp_path, clip, latent_space=latent_space, video_feature=video_feature)
    compare(model, clip, seed=3, num_frames=3, tolerance=1e-9)


@pytest.mark.parametrize("latent_space", ["linear", "transformer"])
@pytest.mark.parametrize(("vision_layers", "text_layers"), [(2, 2), (4, 2), (5, 3), (2, 3), (1, 1)])
def test_equals_the_twin_for_unequal_depths(tmp_path: Path, latent_space: str, vision_layers: int, text_layers: int) -> None:
    clip = clip_config(vision_layers, text_layers)
    model = build(tmp_path, clip, latent_space=latent_space)
    compare(model, clip, seed=4, num_frames=3, tolerance=1e-9)


@pytest.mark.parametrize("absent", ["num_local_prompts", "num_prefix_prompts", "num_postfix_prompts"])
@pytest.mark.parametrize("latent_space", ["linear", "transformer"])
def test_equals_the_twin_without_one_kind_of_prompt(tmp_path: Path, latent_space: str, absent: str) -> None:
    clip = clip_config()
    model = build(tmp_path, clip, latent_space=latent_space, **{absent: 0})
    compare(model, clip, seed=5, num_frames=3, tolerance=1e-9)


@pytest.mark.parametrize("latent_space", ["linear", "transformer", None])
def test_float32_is_close_to_the_twin(tmp_path: Path, latent_space: str | None) -> None:
    clip = clip_config()
    model = build(tmp_path, clip, latent_space=latent_space, dtype=torch.float32)
    compare(model, clip, seed=6, num_frames=3, tolerance=1e-5)


@pytest.mark.parametrize("vision", [{"ls_init_value": 0.3}, {"no_ln_pre": True}, {}])
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_equals_the_twin_for_other_clips(tmp_path: Path, vision: dict[str, Any], quick_gelu: bool) -> None:
    clip = clip_config(quick_gelu=quick_gelu, **vision)
    model = build(tmp_path, clip, latent_space="linear")
    compare(model, clip, seed=7, num_frames=3, tolerance=1e-9)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    latent_space=st.sampled_from(["linear", "transformer", None]),
    video_feature=st.sampled_from(VIDEO_FEATURES),
    layers=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    depth=st.none() | st.integers(1, 4),
    counts=st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 3), st.integers(0, 2)).filter(lambda c: c[0] + c[2] + c[3] > 0),
    num_frames=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 1000),
)
def test_equals_the_twin_everywhere(
    tmp_path: Path,
    latent_space: str | None,
    video_feature: str,
    layers: tuple[int, int],
    depth: int | None,
    counts: tuple[int, int, int, int],
    num_frames: int,
    seed: int,
) -> None:
    clip = clip_config(*layers)
    names = ("num_local_prompts", "num_global_prompts", "num_prefix_prompts", "num_postfix_prompts")
    options = dict(zip(names, counts, strict=True))
    depth = None if depth is None else min(depth, layers[0])
    model = build(
        tmp_path,
        clip,
        latent_space=latent_space,
        video_feature=video_feature,
        prompt_depth=depth,
        num_frames=num_frames,
        **options,
    )
    compare(model, clip, seed=seed, num_frames=num_frames, tolerance=1e-9)


@pytest.mark.parametrize(
    ("clip", "latent_space", "num_frames", "count"),
    [
        ("ViT-B-32", "linear", 12, 827_392),
        ("ViT-B-16", "linear", 12, 827_392),
        ("ViT-B-32", "transformer", 12, 9_575_168),
        ("ViT-B-16", "transformer", 64, 11_492_096),
        ("ViT-L-14", "linear", 12, 1_676_800),
        ("ViT-L-14", "transformer", 12, 17_649_408),
    ],
)
def test_trainable_parameters_are_as_many_as_published(clip: str, latent_space: Any, num_frames: int, count: int) -> None:
    model = build_model(ModelConfig(clip=clip, latent_space=latent_space, num_frames=num_frames), device="meta")
    assert sum(parameter.numel() for _, parameter in model.trainable_parameters()) == count


def test_the_largest_clip_builds_and_runs_on_the_meta_device() -> None:
    model = build_model(ModelConfig(clip="ViT-bigG-14", num_frames=2), device="meta", dtype=torch.bfloat16)
    frames = torch.empty(1, 2, 3, 224, 224, device="meta")
    assert model.encode_video(frames).shape == (1, model.embed_dim)


def test_local_prompts_start_like_published_ones(tmp_path: Path) -> None:
    model = build(tmp_path, clip_config(), latent_space="linear", dtype=torch.float32)
    state = model.prompts_state()
    bound = (6 / (3 * 3**2 + 14)) ** 0.5
    for name in ("global_prompts", "latent_space.table"):
        assert 0.8 * bound < state[name].abs().max() <= bound


def test_seed_decides_prompts_and_leaves_torch_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (build(tmp_path, clip_config(), seed=seed).prompts_state() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["global_prompts"], other["global_prompts"])


def test_only_prompts_are_trained_and_only_postfix_gets_no_gradient(tmp_path: Path) -> None:
    model = build(tmp_path, clip_config(), latent_space="linear")
    video, text = model(random_frames(2, 3, 0), random_tokens(2, 0))
    contrastive(model.similarity(text, video)).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert all(name.startswith("prompts.") for name, _ in model.trainable_parameters())
    assert without - frozen == {"prompts.latent_space.postfix.weight", "prompts.latent_space.postfix.bias"}


@pytest.mark.parametrize("counts", [(2, 4, 1), (4, 2, 6), (3, 0, 2), (0, 2, 5), (0, 0, 3), (2, 3, 0)])
@pytest.mark.parametrize("latent_space", ["linear", "transformer"])
def test_parameters_reached_by_gradients_are_counted(tmp_path: Path, latent_space: str, counts: tuple[int, int, int]) -> None:
    names = ("num_local_prompts", "num_prefix_prompts", "num_postfix_prompts")
    model = build(tmp_path, clip_config(), latent_space=latent_space, **dict(zip(names, counts, strict=True)))
    video, text = model(random_frames(2, 3, 0), random_tokens(2, 0))
    contrastive(model.similarity(text, video)).backward()
    reached = 0
    for name, parameter in model.trainable_parameters():
        if parameter.grad is None:
            continue
        # Rows that are not read have a gradient of zero; single numbers may have one by symmetry, as biases of keys do.
        rows = parameter.grad.transpose(0, 1) if name.endswith("table") and latent_space == "linear" else parameter.grad[None]
        reached += sum(row.numel() for row in rows if row.any())
    assert num_reached(model.config, model.prompts_state()) == reached


@pytest.mark.parametrize("latent_space", ["linear", "transformer"])
def test_activation_checkpointing_changes_no_gradient(tmp_path: Path, latent_space: str) -> None:
    gradients = []
    for enabled in (False, True):
        model = build(tmp_path, clip_config(), latent_space=latent_space)
        model.set_execution(activation_checkpointing=enabled)
        video, text = model(random_frames(2, 3, 0), random_tokens(2, 0))
        contrastive(model.similarity(text, video)).backward()
        gradients.append([parameter.grad for _, parameter in model.trainable_parameters() if parameter.grad is not None])
    assert gradients[0]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("latent_space", ["linear", "transformer", None])
def test_each_encoder_alone_gives_what_both_together_give(tmp_path: Path, latent_space: str | None) -> None:
    model = build(tmp_path, clip_config(), latent_space=latent_space)
    frames, tokens = random_frames(3, 3, 1), random_tokens(5, 1)
    video, text = model(frames, tokens)
    assert torch.equal(model.encode_video(frames), video)
    assert torch.equal(model.encode_text(tokens), text)
    assert video.norm(dim=1).allclose(torch.ones(3, dtype=torch.float64))


def test_a_caption_counts_alone_as_in_a_batch(tmp_path: Path) -> None:
    model = build(tmp_path, clip_config())
    tokens = random_tokens(7, 2)
    alone = torch.cat([model.encode_text(row[None]) for row in tokens])
    assert (model.encode_text(tokens) - alone).abs().max() < 1e-12


def test_linear_prompts_take_any_number_of_frames(tmp_path: Path) -> None:
    clip = clip_config()
    model = build(tmp_path, clip, latent_space="linear", num_frames=3)
    compare(model, clip, seed=8, num_frames=5, tolerance=1e-9)


def test_similarity_normalises_what_is_not(tmp_path: Path) -> None:
    model = build(tmp_path, clip_config())
    text, video = torch.randn(2, 11), torch.randn(3, 11)
    wanted = model.logit_scale.exp() * F.normalize(text, dim=1) @ F.normalize(video, dim=1).T
    assert torch.allclose(model.similarity(5 * text, 7 * video), wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_float32_masters_and_features(tmp_path: Path, dtype: torch.dtype) -> None:
    model = build(tmp_path, clip_config(), dtype=dtype)
    exact = build(tmp_path, clip_config(), dtype=torch.float32)
    frames, tokens = random_frames(2, 3, 1, torch.float32), random_tokens(2, 1)
    video, text = model(frames, tokens)
    wanted_video, wanted_text = exact(frames, tokens)
    assert {parameter.dtype for _, parameter in model.trainable_parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in model.video.parameters()} == {dtype}
    assert video.dtype == text.dtype == torch.float32
    assert (video - wanted_video).abs().max() < 0.05
    assert (text - wanted_text).abs().max() < 0.05


def test_runs_when_prompts_are_bfloat16_too(tmp_path: Path) -> None:
    model = build(tmp_path, clip_config(), dtype=torch.bfloat16).bfloat16()
    video, text = model(random_frames(2, 3, 1, torch.bfloat16), random_tokens(2, 1))
    contrastive(model.similarity(text, video)).backward()
    assert torch.isfinite(model.prompts_state()["global_prompts"]).all()
    assert model.logit_scale.dtype == torch.float32


def test_refuses_prompts_the_clip_has_no_room_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prompt_depth 4 is more than the 3 vision layers"):
        build(tmp_path, clip_config(), prompt_depth=4)
    with pytest.raises(ConfigError, match="needs a local, prefix or postfix prompt"):
        build(tmp_path, clip_config(), num_local_prompts=0, num_prefix_prompts=0, num_postfix_prompts=0)


def test_load_prompts_state_changes_all_or_nothing(tmp_path: Path) -> None:
    model = build(tmp_path, clip_config(), dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.prompts_state().items()}
    broken = {name: tensor + 1 for name, tensor in before.items()}
    broken["latent_space.table"][0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="NaN or infinity in latent_space"):
        model.load_prompts_state(broken)
    with pytest.raises(CheckpointError, match=r"missing \['global_prompts'\]"):
        model.load_prompts_state({name: tensor for name, tensor in before.items() if name != "global_prompts"})
    with pytest.raises(CheckpointError, match=r"global_prompts is \[2, 14\], expected \[3, 14\]"):
        model.load_prompts_state(before | {"global_prompts": torch.zeros(2, 14)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.prompts_state().items())
    model.load_prompts_state({name: tensor + 1 for name, tensor in before.items()})
    assert all(torch.equal(tensor, before[name] + 1) for name, tensor in model.prompts_state().items())


def test_a_real_clip_by_name_builds_and_runs() -> None:
    model = build_model(ModelConfig(clip="ViT-B-32-quickgelu", latent_space="linear", num_frames=2))
    tokens = torch.tensor([[49406, 320, 1929, 49407, 0, 0]])
    video, text = model(random_frames(1, 2, 0, torch.float32, size=224), tokens)
    similarity = model.similarity(text, video)
    similarity.sum().backward()
    assert similarity.shape == (1, 1)
    assert all(parameter.grad is not None for name, parameter in model.trainable_parameters() if "postfix" not in name)


@pytest.mark.parametrize("latent_space", ["linear", "transformer"])
def test_gradients_are_those_of_finite_differences(tmp_path: Path, latent_space: Any) -> None:
    """On the smallest model: one layer a tower, one prompt of each kind."""
    clip = clip_config(1, 1, width=4, head_width=2, image_size=2, patch_size=1)
    clip["text_cfg"] |= {"width": 6, "heads": 2}
    counts = {f"num_{kind}_prompts": 1 for kind in ("local", "global", "prefix", "postfix")}
    model = build(tmp_path, clip, latent_space=latent_space, **{"num_frames": 2, **counts})
    frames, tokens = random_frames(2, 2, 0, size=2), random_tokens(2, 0)
    names = [name for name, _ in model.trainable_parameters()]

    def features(*values: Tensor) -> tuple[Tensor, Tensor]:
        return functional_call(model, dict(zip(names, values, strict=True)), (frames, tokens))

    values = [parameter.detach().clone().requires_grad_() for _, parameter in model.trainable_parameters()]
    torch.autograd.gradcheck(features, tuple(values), atol=1e-6, rtol=1e-4, fast_mode=True)
