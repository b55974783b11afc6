"""DGL computed as the published implementation computes it: the rival of `dgl-scale bench model`.

Every prompt has its query, output projection and MLP; postfix prompts and padding stay in the text tower; keys and
values are projected once for each of the two attentions; latent prompts are computed for each sample; the last layer
and the projections compute every token. Same weights and same features as `dgl_scale.model`, to rounding.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgl_scale.config import ModelConfig
from dgl_scale.model.clip_shape import ClipShape, TowerShape


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


class _Block(nn.Module):
    """A residual attention block on sequences-first tensors `[L, B, D]`, as CLIP's own."""

    def __init__(self, width: int, num_heads: int, mlp_width: int, quick_gelu: bool, norm_eps: float) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, num_heads)
        self.ln_1 = nn.LayerNorm(width, eps=norm_eps)
        self.c_fc = nn.Linear(width, mlp_width)
        self.c_proj = nn.Linear(mlp_width, width)
        self.ln_2 = nn.LayerNorm(width, eps=norm_eps)
        self.quick_gelu = quick_gelu

    def attend(self, query: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        mixed: Tensor = self.attn(query, keys, keys, need_weights=False, attn_mask=mask)[0]
        return mixed

    def mlp(self, x: Tensor) -> Tensor:
        hidden = self.c_fc(self.ln_2(x))
        output: Tensor = self.c_proj(_quick_gelu(hidden) if self.quick_gelu else F.gelu(hidden))
        return output


class LiteralDGL(nn.Module):
    """Both towers with prompts, all parameters of CLIP frozen.

    Args:
        config: as of `build_model`; equal depths of both towers, video feature `global_0`.
        shape: of the CLIP.
        state: CLIP's weights under open_clip's names.
        prompts: of `DGL.prompts_state`, copied.
    """

    def __init__(self, config: ModelConfig, shape: ClipShape, state: Mapping[str, Tensor], prompts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.frozen = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(state[name].clone(), False) for name in _LOOSE if name in state}
        )
        self.vision = _frozen_blocks(shape.vision, state, "visual.transformer.resblocks.")
        self.text = _frozen_blocks(shape.text, state, "transformer.resblocks.")
        self.prompts = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(value.clone()) for name, value in prompts.items()})

    def forward(self, frames: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised video and text features, as `DGL.forward`."""
        local_prompts, text_prompts = self._latent_prompts(frames.shape[0])
        video = self._encode_video(frames, local_prompts)
        text = self._encode_text(tokens, text_prompts)
        return F.normalize(video.float(), dim=-1), F.normalize(text.float(), dim=-1)

    def _prompt(self, name: str) -> Tensor:
        prompt: Tensor = self.prompts[f"latent_space/{name}"]
        return prompt

    def _latent_prompts(self, batch: int) -> tuple[Tensor, Tensor]:
        """Local prompts `[K, B, T or 1, N, D_v]` and text prompts `[K, B, n_t, D_t]`, each sample its own copy."""
        config = self.config
        table = self._prompt("table")
        if config.latent_space == "linear":
            latent = table.unsqueeze(1).expand(-1, batch, -1, -1)  # [K, B, N, D]
            prefix = F.linear(latent, self._prompt("prefix/weight"), self._prompt("prefix/bias"))
            postfix = F.linear(latent, self._prompt("postfix/weight"), self._prompt("postfix/bias"))
            return latent.unsqueeze(2), torch.cat([prefix, postfix], dim=2)
        num_text = config.num_prefix_prompts + config.num_postfix_prompts
        latent = table.unsqueeze(0).expand(batch, -1, -1, -1).permute(2, 0, 1, 3).flatten(0, 1)  # [K*B, M, D]
        mixed = torch.unflatten(self._prompt_block(latent), 0, (-1, batch))
        hidden = _quick_gelu(F.linear(mixed[:, :, :num_text], self._prompt("to_text/mlp_in/weight"), self._prompt("to_text/mlp_in/bias")))
        text = F.linear(hidden, self._prompt("to_text/mlp_out/weight"), self._prompt("to_text/mlp_out/bias"))
        return torch.unflatten(mixed[:, :, num_text:], 2, (config.num_frames, config.num_local_prompts)), text

    def _prompt_block(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        normed = F.layer_norm(x, (width,), self._prompt("block/ln_1/weight"), self._prompt("block/ln_1/bias"))
        projected = F.linear(normed, self._prompt("block/query_key_value/weight"), self._prompt("block/query_key_value/bias"))
        query, key, value = torch.unflatten(projected, -1, (3, self.shape.vision.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, self._prompt("block/out/weight"), self._prompt("block/out/bias"))
        normed = F.layer_norm(x, (width,), self._prompt("block/ln_2/weight"), self._prompt("block/ln_2/bias"))
        hidden = _quick_gelu(F.linear(normed, self._prompt("block/mlp_in/weight"), self._prompt("block/mlp_in/bias")))
        return x + F.linear(hidden, self._prompt("block/mlp_out/weight"), self._prompt("block/mlp_out/bias"))

    def _encode_video(self, frames: Tensor, local_prompts: Tensor) -> Tensor:
        batch, num_frames = frames.shape[:2]
        dtype = self.frozen["visual/conv1/weight"].dtype
        global_tokens = self.prompts["global_prompts"].to(dtype).unsqueeze(1).expand(-1, batch, -1)  # [G, B, D]
        own = torch.unflatten(self._embed(frames.to(dtype)), 0, (batch, num_frames)).permute(2, 1, 0, 3)  # [S, T, B, D]
        for layer, block in enumerate(self.vision):
            assert isinstance(block, _Block)
            local = local_prompts[layer].to(dtype).expand(-1, num_frames, -1, -1).permute(2, 1, 0, 3)  # [N, T, B, D]
            x = torch.cat([own[:1], local, own[1:]])  # [S+N, T, B, D]
            own, global_tokens = _literal_layer(block, x, global_tokens)
            own = torch.cat([own[:1], own[1 + len(local) :]])
        outputs = torch.cat([global_tokens, own.flatten(0, 1)]).transpose(0, 1)  # [B, G+S*T, D]
        normed = self._norm("visual.ln_post", outputs, self.shape.vision)
        features: Tensor = normed @ self.frozen["visual/proj"]
        return features[:, 0]

    def _embed(self, frames: Tensor) -> Tensor:
        patches = (
            F.conv2d(frames.flatten(0, 1), self.frozen["visual/conv1/weight"], stride=self.shape.patch_size).flatten(2).transpose(1, 2)
        )
        class_token = self.frozen["visual/class_embedding"].expand(len(patches), 1, -1)
        tokens = torch.cat([class_token, patches], dim=1) + self.frozen["visual/positional_embedding"]
        return self._norm("visual.ln_pre", tokens, self.shape.vision) if self.shape.has_ln_pre else tokens

    def _encode_text(self, tokens: Tensor, text_prompts: Tensor) -> Tensor:
        dtype = self.frozen["token_embedding/weight"].dtype
        num_prefix, length = self.config.num_prefix_prompts, tokens.shape[1]
        words = F.embedding(tokens, self.frozen["token_embedding/weight"]) + self.frozen["positional_embedding"][:length]
        words = words.transpose(0, 1)  # [L, C, D]
        size = length + text_prompts.shape[2]
        mask = torch.full((size, size), -math.inf, dtype=dtype, device=words.device).triu_(1)
        for layer, block in enumerate(self.text):
            assert isinstance(block, _Block)
            prompts = text_prompts[layer].to(dtype).transpose(0, 1)  # [n_t, C, D]
            x = torch.cat([words[:1], prompts[:num_prefix], words[1:], prompts[num_prefix:]])
            normed = block.ln_1(x)
            x = x + block.attend(normed, normed, mask)
            x = x + block.mlp(x)
            words = torch.cat([x[:1], x[1 + num_prefix : num_prefix + length]])
        projected: Tensor = self._norm("ln_final", words.transpose(0, 1), self.shape.text) @ self.frozen["text_projection"]
        return projected[torch.arange(len(tokens), device=words.device), tokens.argmax(dim=1).to(words.device)]

    def _norm(self, name: str, x: Tensor, tower: TowerShape) -> Tensor:
        name = name.replace(".", "/")
        return F.layer_norm(x, (tower.width,), self.frozen[f"{name}/weight"], self.frozen[f"{name}/bias"], tower.norm_eps)


_LOOSE = (
    *("visual.conv1.weight", "visual.class_embedding", "visual.positional_embedding", "visual.proj"),
    *("visual.ln_pre.weight", "visual.ln_pre.bias", "visual.ln_post.weight", "visual.ln_post.bias"),
    *("token_embedding.weight", "positional_embedding", "ln_final.weight", "ln_final.bias", "text_projection"),
)


def _literal_layer(block: _Block, x: Tensor, global_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Frames' tokens `[S+N, T, B, D]` and global tokens `[G, B, D]` after a layer, every one of them computed."""
    size, num_frames, batch, _ = x.shape
    normed, normed_globals = block.ln_1(x), block.ln_1(global_tokens)
    shared = normed_globals.unsqueeze(1).expand(-1, num_frames, -1, -1)
    keys = torch.cat([shared, normed]).flatten(1, 2)  # [G+S+N, T*B, D]
    in_frames = torch.unflatten(block.attend(normed.flatten(1, 2), keys), 1, (num_frames, batch))
    over_video = block.attend(normed_globals, torch.cat([normed_globals, normed.flatten(0, 1)]))
    joined = torch.cat([global_tokens, x.flatten(0, 1)]) + torch.cat([over_video, in_frames.flatten(0, 1)])
    joined = joined + block.mlp(joined)
    return torch.unflatten(joined[len(global_tokens) :], 0, (size, num_frames)), joined[: len(global_tokens)]


def _frozen_blocks(tower: TowerShape, state: Mapping[str, Tensor], prefix: str) -> nn.ModuleList:
    quick_gelu = tower.activation == "quick_gelu"
    blocks = nn.ModuleList(
        _Block(tower.width, tower.num_heads, tower.mlp_width, quick_gelu, tower.norm_eps) for _ in range(tower.num_layers)
    )
    for index, block in enumerate(blocks):
        start = f"{prefix}{index}."
        own = {name.removeprefix(start).removeprefix("mlp."): value for name, value in state.items() if name.startswith(start)}
        block.load_state_dict({name: value.clone() for name, value in own.items()}, assign=True)
    return blocks.requires_grad_(False)
