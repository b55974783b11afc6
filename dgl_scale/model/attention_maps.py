"""What the features look at: attention weights of one layer, computed apart, slowly and explicitly.

The fast kernels never make these weights. Here the tokens go through the towers' own layers up to the one asked for, and
its softmax is written out. Weights are means over heads; each set sums to 1. Not for ZeRO-3, whose weights are spread.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dgl_scale.model.clip_layers import ClipLayer
from dgl_scale.model.text_tower import TextTower, causal_bias, full_layer, shared_keys_values, with_shared
from dgl_scale.model.video_tower import VideoTower, keys_values_of, plain_layer
from dgl_scale.model.video_tower import full_layer as full_video_layer


@dataclass(frozen=True)
class VideoAttention:
    """Weights of `Q` queries of a video over everything they see; over all four, each query's sum is 1.

    With prompts the queries are the G global tokens; the method's feature is read from the first. In a frozen CLIP, whose
    feature is the mean over frames, there is one: the mean of the frames' class tokens.

    Attributes:
        patches: `[B, Q, T, rows, columns]`.
        class_tokens: `[B, Q, T]`.
        local_prompts: `[B, Q, T, N]`.
        global_tokens: `[B, Q, G]`.
    """

    patches: Tensor
    class_tokens: Tensor
    local_prompts: Tensor
    global_tokens: Tensor

    @property
    def frames(self) -> Tensor:
        """Weight on each frame, all of its tokens together, `[B, Q, T]`."""
        return self.patches.sum(dim=(-2, -1)) + self.class_tokens + self.local_prompts.sum(dim=-1)


@dataclass(frozen=True)
class TextAttention:
    """Weights of each caption's end-of-text token; `words` and `prefix` together sum to 1.

    Attributes:
        words: `[C, L]` over the caption's positions, start and end-of-text included; 0 behind the end.
        prefix: `[C, N]` over the prefix prompts.
    """

    words: Tensor
    prefix: Tensor


@torch.no_grad()
def video_attention(tower: VideoTower, frames: Tensor, prompts: tuple[Tensor, Tensor] | None, layer: int, grid: int) -> VideoAttention:
    """Attention of the global tokens (or, without prompts, the class tokens) in one layer.

    Args:
        tower: the vision tower.
        frames: normalised, `[B, T, 3, H, W]`.
        prompts: global `[G, D]` and local `[K, T or 1, N, D]`; None: frozen CLIP.
        layer: 0 to the tower's last.
        grid: patches in a row of a frame.
    """
    tokens = tower.embedding(frames.to(tower.dtype))  # [B, T, S, D]
    if prompts is None:
        return _frozen_attention(tower, tokens, layer, grid)
    global_prompts, local_prompts = prompts
    global_tokens = global_prompts.expand(len(tokens), -1, -1)
    for index in range(layer):
        tokens, global_tokens = full_video_layer(_layer(tower, index), tokens, global_tokens, _own(local_prompts, index))
    block, local = _layer(tower, layer), _own(local_prompts, layer)
    normed = block.ln_1(global_tokens)
    key_value = keys_values_of(block, block.ln_1(tokens), local, normed)  # [B, T, S+N+G, 2*D]
    num_frames, size, num_globals = tokens.shape[1], tokens.shape[2], global_tokens.shape[1]
    once = torch.cat([key_value[:, :, : key_value.shape[2] - num_globals].flatten(1, 2), key_value[:, 0, -num_globals:]], dim=1)
    weights = _weights(block.query(normed), once, block.num_heads)  # [B, G, T*(S+N)+G]
    in_frames = torch.unflatten(weights[..., :-num_globals], -1, (num_frames, -1))  # [B, G, T, S+N]
    return VideoAttention(
        torch.unflatten(in_frames[..., 1:size], -1, (grid, grid)), in_frames[..., 0], in_frames[..., size:], weights[..., -num_globals:]
    )


@torch.no_grad()
def text_attention(tower: TextTower, tokens: Tensor, prefix: Tensor | None, layer: int) -> TextAttention:
    """Attention of the end-of-text tokens in one layer.

    Args:
        tower: the text tower.
        tokens: `[C, L]` on the tower's device.
        prefix: prompts `[J, N, D]` of the first J layers, or None.
        layer: 0 to the tower's last.
    """
    ends = tokens.argmax(dim=1)
    embedded = tower.embedding(tokens)
    start, words = embedded[:1, :1], embedded[:, 1:]
    causal = causal_bias(words)
    for index in range(layer):
        start, words = full_layer(_layer(tower, index), start, words, _own(prefix, index), causal)
    block, prompts = _layer(tower, layer), _own(prefix, layer)
    normed = block.ln_1(words)
    shared = shared_keys_values(block, start, prompts)  # [1, 1+N, 2*D]
    query = block.query(normed[torch.arange(len(words)), ends - 1]).unsqueeze(1)
    behind_end = torch.arange(1, tokens.shape[1], device=tokens.device) > ends[:, None]  # [C, L-1]
    hidden = torch.cat([behind_end.new_zeros(len(words), shared.shape[1]), behind_end], dim=1)[:, None, None]
    weights = _weights(query, with_shared(shared, block.key_value(normed)), block.num_heads, hidden).squeeze(1)  # [C, 1+N+L-1]
    num_prefix = shared.shape[1] - 1
    return TextAttention(torch.cat([weights[:, :1], weights[:, 1 + num_prefix :]], dim=1), weights[:, 1 : 1 + num_prefix])


def _frozen_attention(tower: VideoTower, tokens: Tensor, layer: int, grid: int) -> VideoAttention:
    for index in range(layer):
        tokens = plain_layer(_layer(tower, index), tokens, tokens.shape[2])
    block = _layer(tower, layer)
    normed = block.ln_1(tokens).flatten(0, 1)  # [B*T, S, D], video-major
    weights = _weights(block.query(normed[:, :1]), block.key_value(normed), block.num_heads).squeeze(1)  # [B*T, S]
    weights = torch.unflatten(weights, 0, tokens.shape[:2]).unsqueeze(1) / tokens.shape[1]  # [B, 1, T, S]
    none = weights[..., :0]
    return VideoAttention(torch.unflatten(weights[..., 1:], -1, (grid, grid)), weights[..., 0], none, none[:, :, 0])


def _weights(query: Tensor, key_value: Tensor, num_heads: int, hidden: Tensor | None = None) -> Tensor:
    """Softmax of `query` `[R, Q, D]` over `key_value` `[R, M, 2 * D]`, mean over heads, in at least float32: `[R, Q, M]`."""
    wide = torch.promote_types(torch.float32, query.dtype)
    queries = torch.unflatten(query.to(wide), -1, (num_heads, -1)).transpose(1, 2)  # [R, H, Q, D/H]
    keys = torch.unflatten(key_value.to(wide), -1, (2, num_heads, -1))[:, :, 0].transpose(1, 2)  # [R, H, M, D/H]
    scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    return scores.softmax(dim=-1).mean(dim=1)


def _layer(tower: VideoTower | TextTower, index: int) -> ClipLayer:
    layer = tower.layers[index]
    assert isinstance(layer, ClipLayer)
    return layer


def _own(prompts: Tensor | None, index: int) -> Tensor | None:
    return prompts[index] if prompts is not None and index < len(prompts) and prompts.shape[-2] else None
