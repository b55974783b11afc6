"""Checkpoints of the published implementation: read, written, compared with a literal re-creation of its layout."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dgl_scale.config import ModelConfig
from dgl_scale.errors import CheckpointError, ConfigError
from dgl_scale.model import DGL, build_model, load_prompts, read_prompts_metadata, save_prompts
from dgl_scale.model.clip_weights import state_digest
from dgl_scale.model.published_checkpoint import export_prompts, import_checkpoint
from tests.reference.published_layout import PublishedDGL, published_clip, training_checkpoint
from tests.reference.tiny_clip import clip_config, random_frames, random_tokens, write_config

COUNTS = {"num_frames": 5, "count": 3, "num_text": 6}


@pytest.fixture
def clip(tmp_path: Path) -> str:
    return write_config(tmp_path, published_clip())


def publish(folder: Path, latent_space: str, change: Callable[[dict[str, Any]], object] | None = None, **counts: int) -> PublishedDGL:
    """Write `ckpt.pth.tar` as published training does, and `clip.safetensors`, the CLIP inside."""
    torch.manual_seed(2)
    model = PublishedDGL(published_clip(), latent_space, **(COUNTS | counts))
    checkpoint = training_checkpoint(model)
    save_file({name: tensor.clone() for name, tensor in frozen_part(model).items()}, folder / "clip.safetensors")
    if change:
        change(checkpoint["state_dict"])
    torch.save(checkpoint, folder / "ckpt.pth.tar")
    return model


def frozen_part(model: PublishedDGL) -> dict[str, Tensor]:
    state = model.clip.state_dict()
    return {name: tensor for name, tensor in state.items() if "rompt" not in name and name != "visual.position_ids"}


def read(folder: Path, clip: str, **options: Any) -> Path:
    options = {"num_text_prompts": 6, "pretrained": str(folder / "clip.safetensors"), **options}
    import_checkpoint(folder / "ckpt.pth.tar", folder / "prompts.safetensors", clip=clip, **options)
    return folder / "prompts.safetensors"


def load(prompts: Path) -> DGL:
    model = build_model(read_prompts_metadata(prompts)["model"])
    load_prompts(model, prompts)
    return model


@pytest.mark.parametrize(
    ("latent_space", "counts"),
    [
        ("linear", {}),
        ("linear", {"num_text": 4}),
        ("linear", {"num_text": 5}),
        ("transformer", {}),
        ("transformer", {"num_frames": 2, "num_text": 7}),
        ("transformer", {"num_frames": 11, "count": 2}),
    ],
)
def test_imported_prompts_are_those_that_the_published_code_computes(
    tmp_path: Path, clip: str, latent_space: str, counts: dict[str, int]
) -> None:
    published = publish(tmp_path, latent_space, **counts)
    sizes = COUNTS | counts
    model = load(read(tmp_path, clip, num_text_prompts=sizes["num_text"], num_frames=sizes["num_frames"]))
    assert (model.config.num_frames, model.config.num_local_prompts, model.config.latent_space) == (
        sizes["num_frames"],
        sizes["count"],
        latent_space,
    )
    assert model.prompts is not None
    with torch.no_grad():
        global_prompts, frames, prefix = model.prompts()
        theirs_global, theirs_frames, theirs_prefix = published.prompts(batch=2)
    assert torch.equal(global_prompts, theirs_global[1])
    assert (frames.expand_as(theirs_frames[:, 1]) - theirs_frames[:, 1]).abs().max() < 1e-5
    assert prefix.shape == theirs_prefix[:, 1].shape
    assert (prefix - theirs_prefix[:, 1]).abs().max() < 1e-5


@pytest.mark.parametrize("latent_space", ["linear", "transformer"])
def test_out_and_in_again_gives_equal_prompts_and_features(tmp_path: Path, clip: str, latent_space: Any) -> None:
    publish(tmp_path, latent_space)  # for its clip.safetensors
    counts = {"num_local_prompts": 2, "num_global_prompts": 2, "num_prefix_prompts": 2, "num_postfix_prompts": 2}
    config = ModelConfig(clip=clip, pretrained=str(tmp_path / "clip.safetensors"), latent_space=latent_space, num_frames=5, **counts)
    model = build_model(config, seed=3)
    save_prompts(model, tmp_path / "mine.safetensors", {"step": 9})
    options = export_prompts(tmp_path / "mine.safetensors", tmp_path / "ckpt.pth.tar")
    assert f"--shared_latent_space {latent_space}" in options
    assert {"--text_prompt_length 4", "--max_frames 5", "--global_visual_prompt_length 2", "--unified_transformer_layers 3"} <= set(options)
    written = torch.load(tmp_path / "ckpt.pth.tar", weights_only=True)
    assert written["global_step"] == 9
    theirs = PublishedDGL(published_clip(), latent_space, num_frames=5, count=2, num_text=4)
    theirs.load_state_dict({name.removeprefix("module."): tensor for name, tensor in written["state_dict"].items()})
    assert {tensor.dtype for tensor in written["state_dict"].values() if tensor.is_floating_point()} == {torch.float32}
    back = load(read(tmp_path, clip, num_text_prompts=4, num_frames=5))
    assert back.config == config
    assert all(torch.equal(tensor, model.prompts_state()[name]) for name, tensor in back.prompts_state().items())
    frames, tokens = random_frames(2, 5, 1, torch.float32), random_tokens(2, 1)
    assert torch.equal(back.encode_video(frames), model.encode_video(frames))
    assert torch.equal(back.encode_text(tokens), model.encode_text(tokens))


def test_the_checkpoint_itself_gives_the_clip(tmp_path: Path, clip: str) -> None:
    publish(tmp_path, "linear")
    one = load(read(tmp_path, clip))
    other = load(read(tmp_path, clip, pretrained=str(tmp_path / "ckpt.pth.tar")))
    assert other.config.pretrained == str(tmp_path / "ckpt.pth.tar")
    assert one.backbone_digest == other.backbone_digest
    tokens = random_tokens(2, 1)
    assert torch.equal(one.encode_text(tokens), other.encode_text(tokens))


def test_a_clip_stored_in_half_precision_is_recognised_and_the_named_one_counts(tmp_path: Path, clip: str) -> None:
    def halve(state: dict[str, Tensor]) -> None:
        for name, tensor in state.items():
            if tensor.is_floating_point() and "rompt" not in name:
                state[name] = tensor.half()

    model = publish(tmp_path, "transformer", halve)
    options = {"clip": clip, "pretrained": str(tmp_path / "clip.safetensors"), "num_text_prompts": 6}
    done = import_checkpoint(tmp_path / "ckpt.pth.tar", tmp_path / "prompts.safetensors", **options)  # type: ignore[arg-type]
    assert done.checkpoint_digest == state_digest({name: tensor.half() for name, tensor in frozen_part(model).items()})
    assert done.backbone_digest == state_digest(frozen_part(model)) != done.checkpoint_digest
    assert load(tmp_path / "prompts.safetensors").backbone_digest == done.backbone_digest


def test_options_of_the_published_command_line_may_be_in_the_file_and_nothing_else(tmp_path: Path, clip: str) -> None:
    publish(tmp_path, "linear")
    checkpoint = torch.load(tmp_path / "ckpt.pth.tar", weights_only=True)
    torch.save(checkpoint | {"args": argparse.Namespace(lr=2e-3, clip="ViT-B/32")}, tmp_path / "ckpt.pth.tar")
    read(tmp_path, clip)

    class Dangerous:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path / 'touched'}",)

    torch.save(checkpoint | {"args": argparse.Namespace(lr=Dangerous())}, tmp_path / "ckpt.pth.tar")
    with pytest.raises(CheckpointError, match=r"ckpt\.pth\.tar hold pickled code and are not loaded"):
        read(tmp_path, clip)
    assert not (tmp_path / "touched").exists()


def test_another_clip_inside_is_refused_with_both_digests(tmp_path: Path, clip: str) -> None:
    def train_clip(state: dict[str, Tensor]) -> None:
        state["module.clip.visual.proj"] = state["module.clip.visual.proj"] + 0.01

    model = publish(tmp_path, "linear", train_clip)
    expected = state_digest(frozen_part(model))[:12]
    with pytest.raises(CheckpointError, match=rf"another CLIP \(weights .*\) than .* \(weights {expected}\): 1 of .* such as visual\.proj"):
        read(tmp_path, clip)
    assert not (tmp_path / "prompts.safetensors").exists()


def drop(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda state: state.pop(f"module.clip.{name}")


def put(name: str, tensor: Tensor, prefix: str = "module.clip.") -> Callable[[dict[str, Any]], object]:
    return lambda state: state.update({prefix + name: tensor})


@pytest.mark.parametrize(
    ("latent_space", "change", "message"),
    [
        ("transformer", drop("unified_prompt_mlp.c_fc.bias"), r"missing unified_prompt_mlp\.c_fc\.bias"),
        ("linear", drop("visual.ln_post.weight"), r"missing visual\.ln_post\.weight"),
        ("linear", drop("visual.prompt_embeddings"), r"no checkpoint of the published DGL, which has visual\.prompt_embeddings"),
        ("linear", put("visual.conv2.weight", torch.zeros(2)), r"unknown visual\.conv2\.weight"),
        ("linear", put("unified_prompt_mlp.c_fc.bias", torch.zeros(2)), r"unknown unified_prompt_mlp\.c_fc\.bias"),
        ("linear", put("transformerClip.ln", torch.zeros(2), prefix="module."), r"transformerClip\.ln outside its clip"),
        ("linear", put("visual_prompt_embedding", torch.zeros(1, 3, 300)), r"is \[1, 3, 300\], no prompts of width 128"),
        ("linear", put("visual_prompt_embedding", torch.zeros(1, 3, 256)), "2 layers over .* 3 vision and 3 text layers"),
        ("linear", put("visual_prompt_embedding", torch.zeros(1, 2, 384)), r"\[1, 2, 384\], expected \[1, 3, 384\]"),
        (
            "linear",
            put("prefix_text_prompt_proj_layer.bias", torch.full((64,), torch.nan)),
            r"NaN or infinity in latent_space\.prefix\.bias",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, clip: str, latent_space: str, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    publish(tmp_path, latent_space, change)
    with pytest.raises((CheckpointError, ConfigError), match=message) as refusal:
        read(tmp_path, clip)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "prompts.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_text_prompts": 7}, "21 prompts a layer, not 7 for text and 3 for each of the frames"),
        ({"num_frames": 4}, "not 6 for text and 3 for each of 4 frames; give --num-text-prompts and --num-frames"),
        ({"num_text_prompts": 1, "num_frames": 5}, "not 1 for text"),
        ({"video_feature": "frame_mean"}, "frame_mean with 3 global prompts: the published code reads it with 4 only"),
        ({"video_feature": "global_0_and_frame_mean"}, "cannot be trained by the published code"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path: Path, clip: str, options: dict[str, Any], message: str) -> None:
    publish(tmp_path, "transformer")
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, clip, **options)


def test_a_time_embedding_that_nothing_reads_is_passed_over(tmp_path: Path, clip: str) -> None:
    publish(tmp_path, "linear", put("visual.frame_embedding", torch.zeros(5, 1, 128)))
    read(tmp_path, clip)


def test_files_of_other_kinds_are_refused(tmp_path: Path, clip: str) -> None:
    publish(tmp_path, "linear")
    (tmp_path / "ckpt.pth.tar").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="damaged or no weights file|pickled code"):
        read(tmp_path, clip)
    torch.save({"state_dict": {"visual.proj": torch.zeros(2)}}, tmp_path / "ckpt.pth.tar")
    with pytest.raises(CheckpointError, match=r"no checkpoint of the published DGL: visual\.proj outside its clip"):
        read(tmp_path, clip)
    with pytest.raises(CheckpointError, match="cannot read weights"):
        import_checkpoint(tmp_path / "absent.pth.tar", tmp_path / "prompts.safetensors", clip=clip, pretrained="openai")


@pytest.mark.parametrize(
    ("clip_change", "options", "message"),
    [
        ({}, {"num_global_prompts": 5}, "4 local and 5 global prompts"),
        ({}, {"num_prefix_prompts": 3, "num_postfix_prompts": 1}, "3 prefix and 1 postfix prompts"),
        ({}, {"num_prefix_prompts": 0, "num_postfix_prompts": 0}, "at least 2"),
        ({}, {"num_prefix_prompts": 5, "num_postfix_prompts": 5, "latent_space": "linear"}, "5 postfix prompts of 4 rows"),
        ({}, {"prompt_depth": 2}, "2 layers over .* 3 vision and 3 text layers"),
        ({"quick_gelu": False}, {}, "has activation none in its vision tower"),
        (clip_config(), {}, "has 2 heads over 14 channels in its vision tower"),
    ],
)
def test_only_what_the_published_code_computes_alike_is_exported(
    tmp_path: Path, clip_change: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    path = write_config(tmp_path, published_clip() | clip_change)
    save_prompts(build_model(ModelConfig(clip=path, num_frames=2, **options)), tmp_path / "prompts.safetensors")
    with pytest.raises(ConfigError, match=message):
        export_prompts(tmp_path / "prompts.safetensors", tmp_path / "ckpt.pth.tar")
    assert not (tmp_path / "ckpt.pth.tar").exists()


def test_prompts_are_exported_with_the_clip_that_they_name_only(tmp_path: Path, clip: str) -> None:
    publish(tmp_path, "linear")
    prompts = read(tmp_path, clip)
    wanted = rf"belong to {clip} with weights .*, but {clip} with pretrained .*other\.pt has weights"
    other = {name: tensor + 1 for name, tensor in frozen_part(publish(tmp_path, "linear")).items()}
    torch.save(other, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=wanted):
        export_prompts(prompts, tmp_path / "out.pth.tar", pretrained=str(tmp_path / "other.pt"))
    (tmp_path / "clip.safetensors").rename(tmp_path / "moved.safetensors")
    export_prompts(prompts, tmp_path / "out.pth.tar", pretrained=str(tmp_path / "moved.safetensors"))
    assert (tmp_path / "out.pth.tar").exists()
