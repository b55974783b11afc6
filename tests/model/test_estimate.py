"""The estimate of a step against PyTorch's counter of operations and against what is allocated."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dgl_scale.bench.step_cost import count_flops, measure_memory
from dgl_scale.bench.train_step import caption_length, random_batch, train_step
from dgl_scale.config import ModelConfig
from dgl_scale.model import build_model
from dgl_scale.model.backbone import load_backbone
from dgl_scale.model.estimate import StepEstimate, StepSize, estimate_step, largest_batch, reached_parameters, trained_parameters
from tests.reference.tiny_clip import write_config

WORDS = 24


def small_clip(**vision: Any) -> dict[str, Any]:
    """Small, but large enough for activations to be more than bookkeeping."""
    return {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 48, "patch_size": 8, "layers": 5, "width": 96, "head_width": 16, **vision},
        "text_cfg": {"context_length": 40, "vocab_size": 97, "layers": 4, "width": 64, "heads": 4},
    }


def estimate(config: ModelConfig, size: StepSize, **options: Any) -> StepEstimate:
    return estimate_step(config, load_backbone(config.clip, None, with_weights=False).shape, size, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"latent_space": "linear"},
        {"latent_space": "transformer"},
        {"latent_space": "linear", "video_feature": "global_0_and_frame_mean", "prompt_depth": 3},
        {"latent_space": "transformer", "video_feature": "frame_mean", "num_local_prompts": 0, "num_prefix_prompts": 7},
        {"latent_space": "linear", "num_global_prompts": 9, "num_local_prompts": 11, "num_prefix_prompts": 2},
    ],
)
def test_operations_and_memory_are_within_five_percent(tmp_path: Path, options: dict[str, Any]) -> None:
    config = ModelConfig(clip=write_config(tmp_path, small_clip()), num_frames=5, **options)
    model = build_model(config)
    frames, tokens = random_batch(model, 3, 5, WORDS, torch.float32, torch.device("cpu"))
    step = train_step(model, frames, tokens)
    given = estimate(config, StepSize(3, 3, 5, caption_length(WORDS)))
    memory = measure_memory(step, model, torch.device("cpu"))
    assert given.model_flops == pytest.approx(count_flops(step), rel=0.05)
    assert given.saved_bytes == pytest.approx(memory.saved, rel=0.05)
    assert given.saved_bytes + given.transient_bytes == pytest.approx(memory.peak, rel=0.05)


@pytest.mark.parametrize("latent_space", ["linear", "transformer"])
@pytest.mark.parametrize(("clip", "num_frames"), [("ViT-B-32", 12), ("ViT-B-16", 64), ("ViT-L-14", 12), ("ViT-bigG-14", 12)])
def test_parameters_are_counted_exactly(clip: str, num_frames: int, latent_space: Any) -> None:
    config = ModelConfig(clip=clip, latent_space=latent_space, num_frames=num_frames)
    model = build_model(config, device="meta")
    trained = sum(parameter.numel() for _, parameter in model.trainable_parameters())
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trained
    unreached = sum(parameter.numel() for name, parameter in model.trainable_parameters() if "postfix" in name.split("."))
    assert trained_parameters(config, model.shape) == trained
    assert reached_parameters(config, model.shape) == trained - unreached
    assert estimate(config, StepSize(1, 1, num_frames, 12), bytes_per_value=1).frozen_bytes == frozen


def test_a_token_and_layer_save_about_ten_widths() -> None:
    config = ModelConfig(clip="ViT-L-14", latent_space="linear")
    assert 10 < estimate(config, StepSize(64, 64, 12, 32)).saved_values_per_token_and_layer < 10.2


def test_activation_checkpointing_saves_memory_for_one_forward(tmp_path: Path) -> None:
    config = ModelConfig(clip=write_config(tmp_path, small_clip()), num_frames=5, latent_space="linear")
    size = StepSize(3, 3, 5, caption_length(WORDS))
    plain, recomputed = estimate(config, size), estimate(config, size, activation_checkpointing=True)
    model = build_model(config)
    model.set_execution(activation_checkpointing=True)
    step = train_step(model, *random_batch(model, 3, 5, WORDS, torch.float32, torch.device("cpu")))
    memory = measure_memory(step, model, torch.device("cpu"))
    assert recomputed.saved_bytes + recomputed.transient_bytes == pytest.approx(memory.peak, rel=0.1)
    assert memory.peak < 0.5 * (plain.saved_bytes + plain.transient_bytes)
    assert recomputed.recomputed_flops == pytest.approx(plain.forward_flops, rel=0.01)


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    config = ModelConfig(clip="ViT-L-14", latent_space="transformer")
    shape, memory = load_backbone(config.clip, None, with_weights=False).shape, 80 * 2**30
    batch = largest_batch(config, shape, memory, caption_length=32, bytes_per_value=2)
    peaks = [estimate(config, StepSize(size, size, 12, 32), bytes_per_value=2).peak_bytes for size in (batch, batch + 1)]
    assert peaks[0] <= memory < peaks[1]
    assert largest_batch(config, shape, 2**20, caption_length=32, bytes_per_value=2) == 0
    assert largest_batch(config, shape, memory, caption_length=32, bytes_per_value=2, activation_checkpointing=True) > 4 * batch


def test_a_frozen_clip_has_no_training_step() -> None:
    with pytest.raises(ValueError, match="no training step"):
        estimate(ModelConfig(clip="ViT-B-32", latent_space=None), StepSize(1, 1, 2, 12))


def test_encoding_memory_does_not_grow_with_the_number_of_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgl_scale.model.dgl._FRAMES_AT_ONCE", 10)
    monkeypatch.setattr("dgl_scale.model.dgl._CAPTIONS_AT_ONCE", 3)
    model = build_model(ModelConfig(clip=write_config(tmp_path, small_clip()), num_frames=5))
    peaks, features = [], []
    for count in (3, 12):
        frames, tokens = random_batch(model, count, 5, WORDS, torch.float32, torch.device("cpu"))

        def encode(frames: torch.Tensor = frames, tokens: torch.Tensor = tokens) -> None:
            with torch.inference_mode():
                features.append(model(frames, tokens))

        peaks.append(measure_memory(encode, nn.Module(), torch.device("cpu")).peak)
    assert peaks[1] < 1.05 * peaks[0] + 12 * 32 * 4 * 4
    frames, tokens = random_batch(model, 12, 5, WORDS, torch.float32, torch.device("cpu"))
    together = model(frames, tokens)  # with gradients nothing is split
    assert all((one - other).abs().max() < 1e-5 for one, other in zip(features[-1], together, strict=True))
