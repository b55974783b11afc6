"""The step that benchmarks of the model time, and its input."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dgl_scale.bench.step_cost import Step
from dgl_scale.model import DGL


def train_step(model: torch.nn.Module, frames: Tensor, tokens: Tensor) -> Step:
    """Forward, symmetric contrastive loss at CLIP's factor of 100, backward."""
    target = torch.arange(len(tokens), device=frames.device)

    def step() -> None:
        video, text = model(frames, tokens)
        similarity = 100 * text @ video.T
        torch.autograd.backward(F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target))
        model.zero_grad(set_to_none=True)

    return step


def random_batch(model: DGL, videos: int, num_frames: int, words: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Frames `[B, T, 3, H, W]` on the device and captions `[B, words]` on the CPU that fill a third of their positions."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(videos, num_frames, 3, model.image_size, model.image_size, generator=generator)
    end = model.shape.end_of_text
    tokens = torch.zeros(videos, min(words, model.context_length), dtype=torch.int64)
    length = caption_length(words)
    tokens[:, 0] = end - 1
    tokens[:, 1 : length - 1] = torch.randint(1, end - 1, (videos, length - 2), generator=generator)
    tokens[:, length - 1] = end
    return frames.to(device, dtype), tokens


def caption_length(words: int) -> int:
    """Positions that a caption of `random_batch` fills, start and end-of-text included."""
    return max(3, words // 3 + 2)
