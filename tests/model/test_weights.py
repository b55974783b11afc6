"""Prompts files: back and forth, and refused where they do not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import dgl_scale
from dgl_scale.config import ModelConfig
from dgl_scale.errors import CheckpointError, DglError
from dgl_scale.model import DGL, build_model, load_prompts, read_prompts_metadata, save_prompts
from tests.reference.tiny_clip import clip_config, random_frames, random_tokens, write_config


def build(folder: Path, *, seed: int = 1, dtype: torch.dtype = torch.float32, backbone_seed: int = 1, **options: Any) -> DGL:
    """A model whose CLIP depends on `backbone_seed` and whose prompts depend on `seed`."""
    path = write_config(folder, clip_config())
    model = build_model(ModelConfig(clip=path, num_frames=3, **options), seed=backbone_seed, dtype=dtype)
    torch.manual_seed(seed)
    if model.prompts is not None:
        model.load_prompts_state({name: torch.randn_like(tensor) for name, tensor in model.prompts_state().items()})
    return model


@pytest.mark.parametrize("latent_space", ["linear", "transformer"])
def test_saved_prompts_give_the_same_features(tmp_path: Path, latent_space: str) -> None:
    one, other = build(tmp_path, seed=1, latent_space=latent_space), build(tmp_path, seed=2, latent_space=latent_space)
    frames, tokens = random_frames(2, 3, 1, torch.float32), random_tokens(2, 1)
    assert not torch.equal(one.encode_video(frames), other.encode_video(frames))
    save_prompts(one, tmp_path / "prompts.safetensors", {"step": 7, "R@1": 45.5})
    metadata = load_prompts(other, tmp_path / "prompts.safetensors")
    assert torch.equal(one.encode_video(frames), other.encode_video(frames))
    assert torch.equal(one.encode_text(tokens), other.encode_text(tokens))
    assert metadata == read_prompts_metadata(tmp_path / "prompts.safetensors")
    assert metadata["model"] == one.config
    assert metadata["extra"] == {"step": 7, "R@1": 45.5}
    assert metadata["backbone_sha256"] == one.backbone_digest
    assert metadata["dgl_scale"] == dgl_scale.__version__


def test_prompts_held_elsewhere_are_saved_in_place_of_the_models_own(tmp_path: Path) -> None:
    model = build(tmp_path)
    masters = {name: tensor + 1 for name, tensor in model.prompts_state().items()}
    save_prompts(model, tmp_path / "prompts.safetensors", state=masters)
    load_prompts(model, tmp_path / "prompts.safetensors")
    assert all(torch.equal(tensor, masters[name]) for name, tensor in model.prompts_state().items())


def test_equal_prompts_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_prompts(build(tmp_path), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_precision_of_the_clip_does_not_matter(tmp_path: Path) -> None:
    save_prompts(build(tmp_path), tmp_path / "prompts.safetensors")
    model = build(tmp_path, seed=2, dtype=torch.bfloat16)
    load_prompts(model, tmp_path / "prompts.safetensors")
    assert torch.equal(model.prompts_state()["global_prompts"], build(tmp_path).prompts_state()["global_prompts"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_space": "linear"}, "trained with latent_space transformer, this model has latent_space linear"),
        ({"num_local_prompts": 2}, "trained with num_local_prompts 4, this model has num_local_prompts 2"),
        ({"num_postfix_prompts": 0}, "num_postfix_prompts 4, this model has num_postfix_prompts 0"),
        ({"prompt_depth": 2}, "prompt_depth None, this model has prompt_depth 2"),
        ({"video_feature": "frame_mean"}, "video_feature global_0, this model has video_feature frame_mean"),
        ({"latent_space": None}, "latent_space transformer, this model has latent_space None"),
    ],
)
def test_prompts_of_another_model_are_refused_with_both_sides(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    save_prompts(build(tmp_path), tmp_path / "prompts.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_prompts(build(tmp_path, **options), tmp_path / "prompts.safetensors")


def test_a_depth_that_is_written_out_fits_the_default(tmp_path: Path) -> None:
    save_prompts(build(tmp_path), tmp_path / "prompts.safetensors")
    load_prompts(build(tmp_path, prompt_depth=3), tmp_path / "prompts.safetensors")


@pytest.mark.parametrize("latent_space", ["linear", "transformer"])
def test_only_transformer_prompts_belong_to_a_number_of_frames(tmp_path: Path, latent_space: Any) -> None:
    save_prompts(build(tmp_path, latent_space=latent_space), tmp_path / "prompts.safetensors")
    model = build_model(ModelConfig(clip=write_config(tmp_path, clip_config()), latent_space=latent_space, num_frames=5), seed=1)
    if latent_space == "linear":
        load_prompts(model, tmp_path / "prompts.safetensors")
        return
    with pytest.raises(CheckpointError, match="trained with num_frames 3, this model has num_frames 5"):
        load_prompts(model, tmp_path / "prompts.safetensors")


def test_prompts_of_another_clip_are_refused(tmp_path: Path) -> None:
    one = build(tmp_path)
    save_prompts(one, tmp_path / "prompts.safetensors")
    other = build(tmp_path, backbone_seed=2)
    assert one.backbone_digest is not None and other.backbone_digest is not None
    message = f"with weights {one.backbone_digest[:12]}, this model is .* with weights {other.backbone_digest[:12]}"
    with pytest.raises(CheckpointError, match=message):
        load_prompts(other, tmp_path / "prompts.safetensors")


def test_nan_is_neither_saved_nor_loaded(tmp_path: Path) -> None:
    model = build(tmp_path)
    path = tmp_path / "prompts.safetensors"
    save_prompts(model, path)
    before = path.read_bytes()
    with torch.no_grad():
        model.prompts_state()["global_prompts"][0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="NaN or infinity in global_prompts and are not saved"):
        save_prompts(model, path)
    assert path.read_bytes() == before


def test_a_frozen_clip_has_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no prompts to save"):
        save_prompts(build(tmp_path, latent_space=None), tmp_path / "prompts.safetensors")
    assert not (tmp_path / "prompts.safetensors").exists()


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DglError, match="cannot write"):
        save_prompts(build(tmp_path), tmp_path / "file" / "prompts.safetensors")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.safetensors"
    model = build(tmp_path)
    with pytest.raises(CheckpointError, match="cannot read prompts"):
        load_prompts(model, path)
    path.write_bytes(b"no tensors here")
    with pytest.raises(CheckpointError, match="damaged or no safetensors"):
        load_prompts(model, path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="holds tensors but no prompts"):
        load_prompts(model, path)
    for card, message in (('{"format": 2}', "have format 2, this version reads format 1"), ("[]", "wrongly"), ('{"format": 1}', "wrongly")):
        save_file({"a": torch.zeros(2)}, path, {"dgl_prompts": card})
        with pytest.raises(CheckpointError, match=message):
            load_prompts(model, path)
    save_prompts(model, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged or no safetensors"):
        load_prompts(model, path)
