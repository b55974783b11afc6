"""The trained parameters of DGL: global prompts and the shared latent space (DGL, sections 3.2 and 3.3).

Nothing here depends on the input, so the prompts of a step are computed once for the whole batch and expanded,
never copied. Latent layer i serves vision layer i; text layer j reads latent layer floor(j * N_v / N_t), which
is j itself where the towers are equally deep.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgl_scale.config import ModelConfig
from dgl_scale.errors import ConfigError
from dgl_scale.model.clip_shape import ClipShape


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's activation."""
    return x * torch.sigmoid(1.702 * x)


class Prompts(nn.Module):
    """All prompts of both towers.

    Raises:
        ConfigError: more prompted layers than the vision tower has, or no local and no text prompts at all.
    """

    def __init__(self, config: ModelConfig, shape: ClipShape) -> None:
        super().__init__()
        num_layers = shape.vision.num_layers
        depth = num_layers if config.prompt_depth is None else config.prompt_depth
        if depth > num_layers:
            raise ConfigError(f"model.prompt_depth {depth} is more than the {num_layers} vision layers of {config.clip}")
        if not config.num_local_prompts + config.num_prefix_prompts + config.num_postfix_prompts:
            raise ConfigError("model needs a local, prefix or postfix prompt; set latent_space to null for a frozen CLIP without prompts")
        text_latents = (j * num_layers // shape.text.num_layers for j in range(shape.text.num_layers))
        latents = [latent for latent in text_latents if latent < depth]
        space = LinearLatentSpace if config.latent_space == "linear" else TransformerLatentSpace
        self.global_prompts = nn.Parameter(torch.empty(config.num_global_prompts, shape.vision.width))
        self.latent_space = space(config, shape, depth, latents)
        _init_like_patches(self.global_prompts, shape)

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Global prompts `[G, D_v]`, local ones `[K, T or 1, N, D_v]`, prefix ones `[J, N_p, D_t]` of the first J text layers."""
        local_prompts, prefix = self.latent_space()
        # A copy, since ZeRO-3 takes the parameter itself away after this forward.
        return self.global_prompts.clone(), local_prompts, prefix


def num_reached(config: ModelConfig, state: Mapping[str, Tensor]) -> int:
    """How many of the numbers of a `Prompts` state dict a gradient reaches; postfix prompts are behind the causal mask."""
    count = state["global_prompts"].numel()
    num_local, num_prefix = config.num_local_prompts, config.num_prefix_prompts
    for name, tensor in state.items():
        part = name.removeprefix("latent_space.")
        if part == "table" and config.latent_space == "linear":
            count += tensor[:, : max(num_local, num_prefix)].numel()
        elif part.startswith(("table", "block")):
            # Every row of a transformer's table shapes the others in the block, if one of them is read.
            count += tensor.numel() if num_local or num_prefix else 0
        elif part.startswith(("prefix", "to_text")):
            count += tensor.numel() if num_prefix else 0
    return count


class LinearLatentSpace(nn.Module):
    """One table of frame prompts, the same in every frame; text prompts are linear maps of it.

    Where the counts differ, each kind of prompt reads the first rows of the table.
    """

    def __init__(self, config: ModelConfig, shape: ClipShape, depth: int, text_latents: Sequence[int]) -> None:
        super().__init__()
        self.num_local = config.num_local_prompts
        self.num_prefix = config.num_prefix_prompts
        self.text_latents = list(text_latents)
        num_rows = max(config.num_local_prompts, config.num_prefix_prompts, config.num_postfix_prompts)
        vision_width, text_width = shape.vision.width, shape.text.width
        self.table = nn.Parameter(torch.empty(depth, num_rows, vision_width))
        self.prefix = nn.Linear(vision_width, text_width) if config.num_prefix_prompts else None
        # Never read: no gradient reaches postfix prompts. Kept because published checkpoints and counts hold it.
        self.postfix = nn.Linear(vision_width, text_width) if config.num_postfix_prompts else None
        _init_like_patches(self.table, shape)

    def forward(self) -> tuple[Tensor, Tensor]:
        """As `Prompts.forward`, without the global prompts."""
        # A copy, since ZeRO-3 takes the parameter itself away after this forward.
        local_prompts = self.table[:, None, : self.num_local].clone()  # [K, 1, N, D_v]
        if self.prefix is None:
            return local_prompts, local_prompts.new_empty(0)
        return local_prompts, self.prefix(_take_layers(self.table[:, : self.num_prefix], self.text_latents))


class TransformerLatentSpace(nn.Module):
    """A table of text and frame prompts, every frame with its own, mixed by one transformer block per layer."""

    def __init__(self, config: ModelConfig, shape: ClipShape, depth: int, text_latents: Sequence[int]) -> None:
        super().__init__()
        self.num_frames = config.num_frames
        self.num_local = config.num_local_prompts
        self.num_prefix = config.num_prefix_prompts
        self.num_text = config.num_prefix_prompts + config.num_postfix_prompts
        self.text_latents = list(text_latents)
        width, num_tokens = shape.vision.width, self.num_text + config.num_local_prompts * config.num_frames
        self.table = nn.Parameter(torch.empty(num_tokens, depth, width))
        self.block = PromptBlock(width, shape.vision.num_heads)
        self.to_text = PromptToText(width, shape.text.width) if self.num_text else None
        nn.init.normal_(self.table)

    def forward(self) -> tuple[Tensor, Tensor]:
        """As `Prompts.forward`, without the global prompts."""
        mixed = self.block(self.table.transpose(0, 1))  # [K, n_t+T*N, D_v]: a sequence for each latent layer
        local_prompts = mixed[:, self.num_text :].unflatten(1, (self.num_frames, self.num_local))  # frame-major
        if self.to_text is None or not self.num_prefix:
            return local_prompts, mixed.new_empty(0)
        return local_prompts, self.to_text(_take_layers(mixed[:, : self.num_prefix], self.text_latents))


class PromptBlock(nn.Module):
    """A trained pre-norm transformer block without a mask, initialised as PyTorch's own attention is."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.ln_1 = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        nn.init.xavier_uniform_(self.query_key_value.weight)
        nn.init.zeros_(self.query_key_value.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[K, M, D]` to `[K, M, D]`."""
        projected = self.query_key_value(self.ln_1(tokens)).unflatten(-1, (3, self.num_heads, -1))  # [K, M, 3, H, D/H]
        query, key, value = (part.transpose(1, 2) for part in projected.unbind(2))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.out(mixed)
        output: Tensor = tokens + self.mlp_out(quick_gelu(self.mlp_in(self.ln_2(tokens))))
        return output


class PromptToText(nn.Module):
    """The MLP from the latent space to the width of the text tower."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.mlp_in = nn.Linear(vision_width, 2 * vision_width)
        self.mlp_out = nn.Linear(2 * vision_width, text_width)

    def forward(self, prompts: Tensor) -> Tensor:
        """`[..., D_v]` to `[..., D_t]`."""
        output: Tensor = self.mlp_out(quick_gelu(self.mlp_in(prompts)))
        return output


def _init_like_patches(parameter: Tensor, shape: ClipShape) -> None:
    bound = math.sqrt(6 / (3 * shape.patch_size**2 + shape.vision.width))
    nn.init.uniform_(parameter, -bound, bound)


def _take_layers(prompts: Tensor, latents: Sequence[int]) -> Tensor:
    """The latent layers `[J, ...]` of `prompts` `[K, ...]` that text layers 0 to J - 1 read."""
    if list(latents) == list(range(len(prompts))):
        return prompts
    return torch.stack([prompts[latent] for latent in latents])
