"""Frames to video features: CLIP's vision tower with global-local video attention (DGL, section 3.4).

Computed lean, and exactly: local prompts serve as keys and values only; the last layer computes only the
tokens that the feature reads.
"""

import torch
from torch import Tensor, nn

from dgl_scale.model.attention import attend_in_frames, attend_over_video, join_keys_values
from dgl_scale.model.clip_layers import ClipLayer, FrameEmbedding, LayerExecution
from dgl_scale.model.clip_shape import ClipShape

CLASS_TOKEN = 1
"""Tokens of a frame before its patches."""


class VideoTower(nn.Module):
    """The frozen vision tower, read with or without prompts."""

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.embedding = FrameEmbedding(shape)
        self.layers = nn.ModuleList(ClipLayer(shape.vision) for _ in range(shape.vision.num_layers))
        self.ln_post = nn.LayerNorm(shape.vision.width, eps=shape.vision.norm_eps)
        self.projection = nn.Linear(shape.vision.width, shape.embed_dim, bias=False)
        self.execution = LayerExecution()

    @property
    def dtype(self) -> torch.dtype:
        """Compute type: that of the frozen weights."""
        return self.projection.weight.dtype

    def forward(self, frames: Tensor, global_prompts: Tensor, local_prompts: Tensor, num_global_read: int, reads_frames: bool) -> Tensor:
        """Raw video features `[B, E]`: the mean of the tokens read from the last layer.

        Args:
            frames: normalised, `[B, T, 3, H, W]`.
            global_prompts: `[G, D]`, carried through the layers as tokens.
            local_prompts: `[K, T or 1, N, D]`, those of layers 0 to K - 1; later layers have none.
            num_global_read: how many global tokens the feature reads, the first ones.
            reads_frames: whether the feature reads the frames' class tokens.
        """
        run = self.execution.run
        frame_tokens = self.embedding(frames.to(self.dtype))
        global_tokens = global_prompts.expand(frames.shape[0], -1, -1)
        for index, layer in enumerate(self.layers):
            prompts = local_prompts[index] if index < len(local_prompts) and local_prompts.shape[2] else None
            if index < len(self.layers) - 1:
                frame_tokens, global_tokens = run(full_layer, layer, frame_tokens, global_tokens, prompts)
            else:
                read = run(_last_layer, layer, frame_tokens, global_tokens, prompts, num_global_read, reads_frames)
        # The projection is linear: the mean of projected tokens is the projection of their mean.
        features: Tensor = self.projection(self.ln_post(read).mean(dim=1))
        return features

    def frame_features(self, frames: Tensor) -> Tensor:
        """Raw CLIP features `[B, T, E]` of frames `[B, T, 3, H, W]`, each on its own, without prompts."""
        tokens = self.embedding(frames.to(self.dtype))
        for index, layer in enumerate(self.layers):
            num_read = tokens.shape[2] if index < len(self.layers) - 1 else CLASS_TOKEN
            tokens = self.execution.run(plain_layer, layer, tokens, num_read)
        features: Tensor = self.projection(self.ln_post(tokens.squeeze(2)))
        return features


def full_layer(layer: ClipLayer, frames: Tensor, global_tokens: Tensor, prompts: Tensor | None) -> tuple[Tensor, Tensor]:
    """All frame tokens `[B, T, S, D]` and global tokens `[B, G, D]` after the layer."""
    normed_frames, normed_globals = layer.ln_1(frames), layer.ln_1(global_tokens)
    keys_values = keys_values_of(layer, normed_frames, prompts, normed_globals)
    mixed_frames = attend_in_frames(layer.query(normed_frames), keys_values, layer.num_heads)
    mixed_globals = attend_over_video(layer.query(normed_globals), keys_values, global_tokens.shape[1], layer.num_heads)
    return layer.finish(frames, mixed_frames), layer.finish(global_tokens, mixed_globals)


def _last_layer(
    layer: ClipLayer, frames: Tensor, global_tokens: Tensor, prompts: Tensor | None, num_global_read: int, reads_frames: bool
) -> Tensor:
    """Only the tokens that the feature reads, `[B, R, D]`: global ones, then a class token of each frame."""
    normed_frames, normed_globals = layer.ln_1(frames), layer.ln_1(global_tokens)
    keys_values = keys_values_of(layer, normed_frames, prompts, normed_globals)
    read = []
    if num_global_read:
        query = layer.query(normed_globals[:, :num_global_read])
        mixed = attend_over_video(query, keys_values, global_tokens.shape[1], layer.num_heads)
        read.append(layer.finish(global_tokens[:, :num_global_read], mixed))
    if reads_frames:
        query = layer.query(normed_frames[:, :, :CLASS_TOKEN])
        mixed = attend_in_frames(query, keys_values, layer.num_heads)
        read.append(layer.finish(frames[:, :, :CLASS_TOKEN], mixed).squeeze(2))
    return torch.cat(read, dim=1)


def plain_layer(layer: ClipLayer, frames: Tensor, num_read: int) -> Tensor:
    """The first `num_read` tokens of each frame `[B, T, S, D]` after the layer, each frame on its own."""
    normed = layer.ln_1(frames)
    query = layer.query(normed[:, :, :num_read])
    mixed = attend_in_frames(query, layer.key_value(normed), layer.num_heads)
    return layer.finish(frames[:, :, :num_read], mixed)


def keys_values_of(layer: ClipLayer, frames: Tensor, prompts: Tensor | None, global_tokens: Tensor) -> Tensor:
    """Keys and values `[B, T, S + N + G, 2 * D]` of normed tokens and raw prompts."""
    local_prompts = None if prompts is None else layer.prompt_keys_values(prompts)
    return join_keys_values(layer.key_value(frames), local_prompts, layer.key_value(global_tokens))
