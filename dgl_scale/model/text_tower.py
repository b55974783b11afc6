"""Tokens to text features: CLIP's text tower with prefix prompts (DGL, section 3.3).

Computed lean, and exactly. Under the causal mask the feature, read at the end-of-text token, sees neither
postfix prompts nor padding: neither enters the tower. Prefix prompts serve as keys and values only. The start
token sees nothing but itself, so it is the same for all captions and computed once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgl_scale.model.attention import attend
from dgl_scale.model.clip_layers import ClipLayer, LayerExecution, TextEmbedding
from dgl_scale.model.clip_shape import ClipShape

COMPILED_LENGTH_BUCKET = 8
"""Compiled for caption lengths of 8, 16, 24 …: each length of its own would compile the layers again."""


class TextTower(nn.Module):
    """The frozen text tower, read with or without prefix prompts."""

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.embedding = TextEmbedding(shape)
        self.layers = nn.ModuleList(ClipLayer(shape.text) for _ in range(shape.text.num_layers))
        self.ln_final = nn.LayerNorm(shape.text.width, eps=shape.text.norm_eps)
        self.projection = nn.Linear(shape.text.width, shape.embed_dim, bias=False)
        self.context_length = shape.context_length
        self.execution = LayerExecution()

    def forward(self, tokens: Tensor, prefix: Tensor | None) -> Tensor:
        """Raw text features `[C, E]`.

        Args:
            tokens: `[C, L]`, all with the same start token; end-of-text is the highest id of a caption. Tokens
                on the CPU spare a GPU one synchronisation, which finding the longest caption costs.
            prefix: prompts `[J, N, D]` of text layers 0 to J - 1; later layers have none.
        """
        ends = tokens.argmax(dim=1)
        tokens = self._cut(tokens, int(ends.max()) + 1)
        device = self.projection.weight.device
        embedded = self.embedding(tokens.to(device))
        start, words = embedded[:1, :1], embedded[:, 1:]  # [1, 1, D], [C, L-1, D]
        last_word = (ends - 1).to(device)
        causal = causal_bias(words)
        run = self.execution.run
        for index, layer in enumerate(self.layers):
            prompts = prefix[index] if prefix is not None and index < len(prefix) else None
            if index < len(self.layers) - 1:
                start, words = run(full_layer, layer, start, words, prompts, causal)
            else:
                read = run(_last_layer, layer, start, words, prompts, last_word)
        features: Tensor = self.projection(self.ln_final(read))
        return features

    def _cut(self, tokens: Tensor, longest: int) -> Tensor:
        """Without positions beyond the longest caption; compiled layers see few lengths, the multiples of a bucket."""
        if self.execution.compiled:
            longest = min(-(-longest // COMPILED_LENGTH_BUCKET) * COMPILED_LENGTH_BUCKET, self.context_length)
            missing = longest - tokens.shape[1]
            if missing > 0:
                return F.pad(tokens, (0, missing))
        return tokens[:, :longest]


def full_layer(layer: ClipLayer, start: Tensor, words: Tensor, prompts: Tensor | None, causal: Tensor) -> tuple[Tensor, Tensor]:
    """Start token `[1, 1, D]` and words `[C, L-1, D]` after the layer."""
    normed = layer.ln_1(words)
    shared = shared_keys_values(layer, start, prompts)
    bias = torch.cat([causal.new_zeros(causal.shape[0], shared.shape[1]), causal], dim=1)
    mixed = attend(layer.query(normed), with_shared(shared, layer.key_value(normed)), layer.num_heads, bias)
    # Attention over a single key is that key's value.
    start_value = shared[:, :1].chunk(2, dim=-1)[1]
    return layer.finish(start, start_value), layer.finish(words, mixed)


def _last_layer(layer: ClipLayer, start: Tensor, words: Tensor, prompts: Tensor | None, last_word: Tensor) -> Tensor:
    """The end-of-text tokens `[C, D]` after the layer; `last_word` `[C]` is their place among the words."""
    normed = layer.ln_1(words)
    shared = shared_keys_values(layer, start, prompts)
    captions = torch.arange(len(words), device=words.device)
    hidden = torch.arange(words.shape[1], device=words.device) > last_word[:, None]
    bias = words.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
    bias = torch.cat([bias.new_zeros(len(words), shared.shape[1]), bias], dim=1)[:, None, None]  # [C, 1, 1, M]
    query = layer.query(normed[captions, last_word]).unsqueeze(1)
    mixed = attend(query, with_shared(shared, layer.key_value(normed)), layer.num_heads, bias)
    return layer.finish(words[captions, last_word], mixed.squeeze(1))


def shared_keys_values(layer: ClipLayer, start: Tensor, prompts: Tensor | None) -> Tensor:
    """Keys and values `[1, 1 + N, 2 * D]` that every word sees: the start token's and the prefix prompts'."""
    keys_values: Tensor = layer.key_value(layer.ln_1(start))
    if prompts is None:
        return keys_values
    return torch.cat([keys_values, layer.prompt_keys_values(prompts).unsqueeze(0)], dim=1)


def with_shared(shared: Tensor, keys_values: Tensor) -> Tensor:
    """The words' keys and values `[C, L-1, 2 * D]` behind those that all captions share, `[C, 1+N+L-1, 2 * D]`."""
    return torch.cat([shared.expand(len(keys_values), -1, -1), keys_values], dim=1)  # [C, 1+N+L-1, 2*D]


def causal_bias(words: Tensor) -> Tensor:
    """What hides later words `[C, L-1, D]` from earlier ones, `[L-1, L-1]`, in their type."""
    size = words.shape[1]
    return words.new_full((size, size), float("-inf")).triu_(1)
