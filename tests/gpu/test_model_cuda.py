"""The model on a GPU: exact, on the fast kernels, within the estimate, compiled."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dgl_scale.bench.step_cost import measure_memory
from dgl_scale.bench.train_step import caption_length, random_batch, train_step
from dgl_scale.config import ModelConfig
from dgl_scale.model import DGL, build_model
from dgl_scale.model.estimate import StepSize, estimate_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")


def build(dtype: torch.dtype, device: torch.device, latent_space: Any = "transformer") -> DGL:
    return build_model(ModelConfig(clip="ViT-B-32-quickgelu", latent_space=latent_space, num_frames=3), seed=1, dtype=dtype, device=device)


def gradients(model: DGL, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    frames, tokens = random_batch(model, 4, 3, 32, dtype, device)
    video, text = model(frames, tokens)
    (100 * text @ video.T).log_softmax(dim=1).diagonal().mean().backward()
    return [video.detach().cpu(), text.detach().cpu(), *(p.grad.cpu() for _, p in model.trainable_parameters() if p.grad is not None)]


@pytest.mark.parametrize("latent_space", ["linear", "transformer"])
def test_float64_equals_the_cpu(latent_space: str) -> None:
    wanted, given = (gradients(build(torch.float64, device, latent_space), torch.float64, device) for device in (torch.device("cpu"), CUDA))
    assert all((one - other).abs().max() < 1e-9 * max(1, one.abs().max()) for one, other in zip(wanted, given, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_close(dtype: torch.dtype) -> None:
    wanted, given = gradients(build(torch.float32, CUDA), torch.float32, CUDA), gradients(build(dtype, CUDA), dtype, CUDA)
    for one, other in zip(wanted[:2], given[:2], strict=True):
        assert torch.nn.functional.cosine_similarity(one, other).min() > 0.999


def test_no_attention_needs_the_plain_kernel() -> None:
    model = build(torch.bfloat16, CUDA)
    step = train_step(model, *random_batch(model, 4, 3, 32, torch.bfloat16, CUDA))
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        step()  # raises where neither can serve a shape, a type or a mask


def test_memory_is_as_estimated() -> None:
    model = build(torch.bfloat16, CUDA)
    step = train_step(model, *random_batch(model, 16, 3, 32, torch.bfloat16, CUDA))
    step()
    memory = measure_memory(step, model, CUDA)
    given = estimate_step(model.config, model.shape, StepSize(16, 16, 3, caption_length(32)), bytes_per_value=2)
    assert given.saved_bytes == pytest.approx(memory.saved, rel=0.05)
    assert given.saved_bytes + given.transient_bytes == pytest.approx(memory.peak, rel=0.1)


@pytest.mark.slow
def test_compiled_layers_equal_eager_ones() -> None:
    plain, compiled = build(torch.float32, CUDA), build(torch.float32, CUDA)
    compiled.set_execution(compile=True)
    wanted, given = gradients(plain, torch.float32, CUDA), gradients(compiled, torch.float32, CUDA)
    assert all((one - other).abs().max() < 1e-3 * max(1, one.abs().max()) for one, other in zip(wanted, given, strict=True))
