"""Global-local attention as functions of tensors (DGL, section 3.4; CLIP's own attention for the rest).

Keys and values travel together as one tensor `[..., 2 * D]` (keys first), so that a layer projects them once
and both attentions read the same numbers. Prompts enter as keys and values only: their outputs are never read.
The order of keys is free, since attention sums over them. Shape letters: `dgl_scale.batch`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key_value: Tensor, num_heads: int, bias: Tensor | None = None) -> Tensor:
    """Multi-head attention of `query` `[R, Q, D]` over `key_value` `[R, M, 2 * D]`: `[R, Q, D]`.

    `bias`, broadcast to `[R, H, Q, M]`, is added to the scaled scores; minus infinity hides a key.
    """
    queries = torch.unflatten(query, -1, (num_heads, -1)).transpose(1, 2)  # [R, H, Q, D/H]
    keys, values = torch.unflatten(key_value, -1, (2, num_heads, -1)).unbind(2)  # each [R, M, H, D/H]
    mixed = F.scaled_dot_product_attention(queries, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=bias)
    return mixed.transpose(1, 2).flatten(2)  # [R, Q, D]


def join_keys_values(frames: Tensor, local_prompts: Tensor | None, global_tokens: Tensor | None) -> Tensor:
    """Keys and values that the tokens of each frame see: its own, its local prompts', the video's global tokens'.

    One copy, which serves both attentions and is what the backward pass keeps of the keys and values.

    Args:
        frames: of the frames' own tokens, `[B, T, S, 2 * D]`.
        local_prompts: `[T or 1, N, 2 * D]`, the same for every video.
        global_tokens: `[B, G, 2 * D]`.

    Returns:
        `[B, T, S + N + G, 2 * D]`, in this order.
    """
    batch, num_frames = frames.shape[:2]
    parts = [frames]
    if local_prompts is not None:
        parts.append(local_prompts.expand(batch, num_frames, -1, -1))
    if global_tokens is not None:
        parts.append(global_tokens.unsqueeze(1).expand(-1, num_frames, -1, -1))
    return torch.cat(parts, dim=2) if len(parts) > 1 else frames


def attend_in_frames(query: Tensor, key_value: Tensor, num_heads: int) -> Tensor:
    """Each frame's tokens `[B, T, Q, D]` attend to the keys and values of their frame, of `join_keys_values`: `[B, T, Q, D]`."""
    mixed = attend(query.flatten(0, 1), key_value.flatten(0, 1), num_heads)  # [B*T, Q, D], video-major
    return torch.unflatten(mixed, 0, query.shape[:2])


def attend_over_video(query: Tensor, key_value: Tensor, num_globals: int, num_heads: int) -> Tensor:
    """Global tokens `[B, Q, D]` attend to each other and to every token and local prompt of every frame: `[B, Q, D]`.

    Args:
        query: `[B, Q, D]`.
        key_value: of `join_keys_values`; its last `num_globals` rows are in every frame.
        num_globals: G.
        num_heads: heads of the layer.
    """
    num_frames, num_keys = key_value.shape[1:3]
    # Each global token stands T times among the keys. With log T taken off its scores its T equal shares
    # exp(s - log T) sum to exp(s): exact, and no second copy of all keys and values is made and kept.
    share = query.new_zeros(num_frames, num_keys)
    share[:, num_keys - num_globals :] = -math.log(num_frames)
    return attend(query, key_value.flatten(1, 2), num_heads, share.view(1, 1, 1, -1))
