"""The frozen parts of a CLIP as modules that own every parameter they use.

No parameter is read outside the forward of the module that owns it, so that ZeRO-3 can gather each one around
its use. Queries are projected apart from keys and values because prompts need the latter only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dgl_scale.model.clip_shape import ClipShape, TowerShape

R = TypeVar("R")
_MOST_COMPILATIONS = 128
_COMPILER = "inductor"


class ClipLayer(nn.Module):
    """The weights of one residual attention block; the towers say what attends to what."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.activation = shape.activation
        self.ln_1 = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.query = nn.Linear(shape.width, shape.width)
        self.key_value = nn.Linear(shape.width, 2 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.ln_2 = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.mlp_in = nn.Linear(shape.width, shape.mlp_width)
        self.mlp_out = nn.Linear(shape.mlp_width, shape.width)

    def prompt_keys_values(self, prompts: Tensor) -> Tensor:
        """Keys and values `[..., 2 * D]` of prompts `[..., D]`."""
        keys_values: Tensor = self.key_value(self.ln_1(prompts))
        return keys_values

    def finish(self, tokens: Tensor, mixed: Tensor) -> Tensor:
        """The block's output, given its input tokens and what attention mixed for them, both `[..., D]`."""
        tokens = tokens + self.out(mixed)
        hidden = self.mlp_in(self.ln_2(tokens))
        # QuickGELU's factor is folded into the weights (`clip_weights`): silu is then one fused kernel.
        hidden = F.silu(hidden) if self.activation == "quick_gelu" else F.gelu(hidden, approximate=self.activation)
        output: Tensor = tokens + self.mlp_out(hidden)
        return output


class FrameEmbedding(nn.Module):
    """Frames to the tokens that enter the first vision layer: class token, patches, positions, `ln_pre`."""

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.patch_size = shape.patch_size
        width = shape.vision.width
        self.patches = nn.Linear(3 * shape.patch_size**2, width, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(shape.num_patches + 1, width))
        self.ln_pre = nn.LayerNorm(width, eps=shape.vision.norm_eps) if shape.has_ln_pre else nn.Identity()

    def forward(self, frames: Tensor) -> Tensor:
        """Frames `[B, T, 3, H, W]` to tokens `[B, T, 1 + P, D]`, class token first."""
        size = self.patch_size
        pixels = torch.unflatten(torch.unflatten(frames, -1, (-1, size)), -3, (-1, size))  # [B, T, 3, H/s, s, W/s, s]
        pixels = pixels.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)  # [B, T, P, 3*s*s], row-major patches
        patches = self.patches(pixels)
        class_token = self.class_embedding.expand(*patches.shape[:2], 1, -1)
        tokens: Tensor = self.ln_pre(torch.cat([class_token, patches], dim=2) + self.positional_embedding)
        return tokens


class TextEmbedding(nn.Module):
    """Token ids to the vectors that enter the first text layer."""

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab_size, shape.text.width)
        self.positional_embedding = nn.Parameter(torch.empty(shape.context_length, shape.text.width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids `[C, L]` to `[C, L, D]`, positions 0 to L - 1 added."""
        embedded: Tensor = self.tokens(tokens) + self.positional_embedding[: tokens.shape[1]]
        return embedded


@dataclass(frozen=True)
class LayerExecution:
    """How the layers of a tower run; none of it changes results beyond rounding.

    Attributes:
        recompute: drop a layer's activations and compute them again in the backward pass.
        compiled: run layers through `torch.compile`, whole or not at all (no graph breaks).
    """

    recompute: bool = False
    compiled: bool = False

    def run(self, function: Callable[..., R], *arguments: object) -> R:
        """`function(*arguments)`, a function of a layer and tensors."""
        if self.compiled:
            function = _compiled(function)
        if self.recompute and torch.is_grad_enabled():
            result: R = checkpoint(function, *arguments, use_reentrant=False)
            return result
        return function(*arguments)


@cache
def _compiled(function: Callable[..., R]) -> Callable[..., R]:
    # All layers of a tower have one shape, so one compilation serves them. Static shapes are faster, and few: a first
    # layer without gradients and the others, training and not, with prompts and without, some caption lengths.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_COMPILATIONS)
    compiled: Callable[..., R] = torch.compile(function, fullgraph=True, dynamic=False, backend=_COMPILER)
    return compiled
