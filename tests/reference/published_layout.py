"""The published implementation's parameters, by its names and in its layouts, and how it makes prompts of them.

Written from its source, for a CLIP of any size: what it calls `clip` is open_clip's CLIP here, whose names are OpenAI's.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from dgl_scale.torchvision_import import import_open_clip


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict([("c_fc", nn.Linear(width, hidden)), ("gelu", QuickGelu()), ("c_proj", nn.Linear(hidden, out))]))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = mlp(width, 4 * width, width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:  # [tokens, batch, width]
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class PublishedDGL(nn.Module):
    def __init__(self, clip: dict[str, Any], latent_space: str, *, num_frames: int, count: int, num_text: int) -> None:
        super().__init__()
        self.latent_space, self.num_frames, self.count, self.num_text = latent_space, num_frames, count, num_text
        self.width, self.layers = clip["vision_cfg"]["width"], clip["vision_cfg"]["layers"]
        text_width = clip["text_cfg"]["width"]
        self.clip = import_open_clip().CLIP(**clip)
        visual = self.clip.visual
        visual.register_buffer("position_ids", torch.arange(len(visual.positional_embedding)).expand(1, -1))
        visual.prompt_embeddings = nn.Parameter(torch.randn(1, count, self.width))
        if latent_space == "transformer":
            self.clip.unified_prompt_mlp = mlp(self.width, 2 * self.width, text_width)
            self.clip.PromptTransformer = nn.Module()
            self.clip.PromptTransformer.resblocks = nn.Sequential(Block(self.width))
            self.clip.unified_prompt_embedding = nn.Embedding(num_text + count * num_frames, self.width * self.layers)
        else:
            self.clip.visual_prompt_embedding = nn.Parameter(torch.randn(1, count, self.layers * self.width))
            self.clip.prefix_text_prompt_proj_layer = nn.Linear(self.width, text_width)
            self.clip.postfix_text_prompt_proj_layer = nn.Linear(self.width, text_width)

    def prompts(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Global `[batch, G, D_v]`, frame `[K, batch, T, N, D_v]` and prefix prompts `[K, batch, n_t // 2, D_t]`."""
        if self.latent_space == "transformer":
            rows = self.clip.unified_prompt_embedding(torch.arange(self.num_text + self.count * self.num_frames).expand(batch, -1))
            size = rows.shape[1]
            sequences = rows.view(batch, size, self.layers, self.width).permute(2, 0, 1, 3)
            sequences = sequences.reshape(self.layers * batch, size, self.width).permute(1, 0, 2)
            mixed = self.clip.PromptTransformer.resblocks(sequences).permute(1, 0, 2).view(self.layers, batch, size, self.width)
            text = self.clip.unified_prompt_mlp(mixed[:, :, : self.num_text])
            frames = mixed[:, :, self.num_text :].reshape(self.layers, batch, self.num_frames, self.count, self.width)
        else:
            table = self.clip.visual_prompt_embedding.expand(batch, -1, -1)
            table = table.view(batch, self.count, self.layers, self.width).permute(2, 0, 1, 3)
            parts = self.clip.prefix_text_prompt_proj_layer(table), self.clip.postfix_text_prompt_proj_layer(table)
            text = torch.cat(parts, dim=2)
            frames = table.unsqueeze(2).expand(-1, -1, self.num_frames, -1, -1)
        return self.clip.visual.prompt_embeddings.expand(batch, -1, -1), frames, text[:, :, : self.num_text // 2]


def training_checkpoint(model: PublishedDGL) -> dict[str, Any]:
    """What its training saves after a step on several GPUs."""
    trained = [parameter for name, parameter in model.named_parameters() if "prompt" in name]
    optimizer = torch.optim.AdamW([{"params": trained, "lr_mult": 1.0, "decay_mult": 1}], lr=2e-3, betas=(0.9, 0.98))
    sum(parameter.square().sum() for parameter in trained).backward()
    optimizer.step()
    state = OrderedDict((f"module.{name}", tensor) for name, tensor in model.state_dict().items())
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 3}
    return {
        "epoch": 1,
        "global_step": 1,
        "arch": "CLIp4Clip",
        "state_dict": state,
        "best_acc1": 45.8,
        "optimizer": optimizer.state_dict(),
        "scaler": scaler,
    }


def published_clip() -> dict[str, Any]:
    """A CLIP that the published code could run: 64 channels a head, equal depths, QuickGELU; D_v = 128, D_t = 64."""
    return {
        "embed_dim": 11,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 6, "patch_size": 3, "layers": 3, "width": 128, "head_width": 64},
        "text_cfg": {"context_length": 13, "vocab_size": 23, "layers": 3, "width": 64, "heads": 1},
    }
