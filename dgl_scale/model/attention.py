"""Global-local attention as functions of tensors (DGL, section 3.4; CLIP's own attention for the rest).

Keys and values travel together as one tensor `[..., 2 * D]` (keys first), so that a layer projects them once
and both attentions read the same numbers. Prompts enter as keys and values only: their outputs are never read.
The order of keys is free, since attention sums over them. Shape letters: `dgl_scale.batch`.
"""

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


def attend_in_frames(query: Tensor, frames: Tensor, local_prompts: Tensor | None, global_tokens: Tensor | None, num_heads: int) -> Tensor:
    """Each frame's tokens attend to their own frame, its local prompts and the video's global tokens.

    Args:
        query: `[B, T, Q, D]`.
        frames: keys and values of the frames' own tokens, `[B, T, S, 2 * D]`.
        local_prompts: keys and values `[T or 1, N, 2 * D]`, the same for every video.
        global_tokens: keys and values `[B, G, 2 * D]`.
        num_heads: heads of the layer.

    Returns:
        `[B, T, Q, D]`.
    """
    batch, num_frames = query.shape[:2]
    parts = [frames]
    if local_prompts is not None:
        parts.append(local_prompts.expand(batch, num_frames, -1, -1))
    if global_tokens is not None:
        parts.append(global_tokens.unsqueeze(1).expand(-1, num_frames, -1, -1))
    key_value = torch.cat(parts, dim=2) if len(parts) > 1 else frames  # [B, T, S+N+G, 2*D]
    mixed = attend(query.flatten(0, 1), key_value.flatten(0, 1), num_heads)  # [B*T, Q, D], video-major
    return torch.unflatten(mixed, 0, (batch, num_frames))


def attend_over_video(query: Tensor, frames: Tensor, local_prompts: Tensor | None, global_tokens: Tensor, num_heads: int) -> Tensor:
    """Global tokens attend to each other and to every token and local prompt of every frame.

    Args:
        query: `[B, Q, D]`.
        frames, local_prompts, global_tokens, num_heads: as in `attend_in_frames`.

    Returns:
        `[B, Q, D]`.
    """
    batch, num_frames = frames.shape[:2]
    parts = [frames.flatten(1, 2), global_tokens]
    if local_prompts is not None:
        parts.append(local_prompts.expand(num_frames, -1, -1).flatten(0, 1).expand(batch, -1, -1))
    return attend(query, torch.cat(parts, dim=1), num_heads)  # keys [B, T*S+G+T*N, 2*D]
