"""CLIPs of a few thousand parameters whose sizes are all different, and inputs for them."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def clip_config(vision_layers: int = 3, text_layers: int = 2, quick_gelu: bool = True, **vision: Any) -> dict[str, Any]:
    """An open_clip model config: D_v = 14, D_t = 15, E = 11, P = 4."""
    return {
        "embed_dim": 11,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": 6, "patch_size": 3, "layers": vision_layers, "width": 14, "head_width": 7, **vision},
        "text_cfg": {"context_length": 13, "vocab_size": 23, "layers": text_layers, "width": 15, "heads": 3},
    }


def write_config(folder: Path, config: dict[str, Any]) -> str:
    """Write the config as a model-config file and return its path."""
    path = folder / "clip.json"
    path.write_text(json.dumps(config))
    return str(path)


def random_frames(num_videos: int, num_frames: int, seed: int, dtype: torch.dtype = torch.float64, size: int = 6) -> Tensor:
    """Normalised frames `[B, T, 3, H, W]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_videos, num_frames, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)


def random_tokens(num_captions: int, seed: int, length: int = 11, vocab_size: int = 23) -> Tensor:
    """Captions of differing lengths, none of them filling the `length` positions: start, words, end, zeros."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(num_captions, length, dtype=torch.int64)
    for i in range(num_captions):
        num_words = int(torch.randint(0, length - 3, (1,), generator=generator))
        tokens[i, 0] = vocab_size - 2
        tokens[i, 1 : 1 + num_words] = torch.randint(1, vocab_size - 2, (num_words,), generator=generator)
        tokens[i, 1 + num_words] = vocab_size - 1
    return tokens
