"""Any model that open_clip builds, frozen and without prompts: the baseline where DGL itself is not defined."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgl_scale.config import ModelConfig
from dgl_scale.errors import DataError
from dgl_scale.model.backbone import load_open_clip_model
from dgl_scale.model.dgl import DGL

_IMAGES_AT_ONCE = 768


@dataclass(frozen=True)
class OpenClipShape:
    """What a model is, besides its weights: open_clip's config of it, as canonical JSON."""

    config: str


class FrozenClip(nn.Module):
    """Video features are means of frame features, as of a `DGL` without prompts, whose evaluation interface this has.

    Attributes: as of `DGL`.
    """

    prompts = None

    def __init__(self, config: ModelConfig, *, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        loaded = load_open_clip_model(config.clip, config.pretrained, seed=seed)
        self.config = config
        self.shape = OpenClipShape(loaded.config)
        self.image_size = loaded.image_size
        self.image_mean, self.image_std = loaded.image_mean, loaded.image_std
        self.context_length = loaded.context_length
        self.backbone_digest = loaded.digest
        # Apart from the module, which may be cast to fewer bits.
        self.logit_scale = loaded.module.logit_scale.detach().float().reshape(()).clone()
        self.clip = loaded.module.requires_grad_(False).to(device, dtype).eval()

    def encode_video(self, frames: Tensor) -> Tensor:
        """Float32 `[B, E]` of unit length, of normalised frames `[B, T, 3, H, W]`."""
        images = frames.flatten(0, 1)
        features = torch.cat([self.clip.encode_image(part) for part in torch.split(images, _IMAGES_AT_ONCE)])
        of_frames = F.normalize(features.float(), dim=-1).reshape(*frames.shape[:2], -1)  # [B, T, E]
        return F.normalize(of_frames.mean(dim=1), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Float32 `[C, E]` of unit length, of int64 `[C, L]`.

        Raises:
            DataError: more positions than the model has.
        """
        room = self.context_length - tokens.shape[1]
        if room < 0:
            raise DataError(
                f"captions have {tokens.shape[1]} positions, {self.config.clip} has {self.context_length}; lower data.max_words"
            )
        padded = F.pad(tokens, (0, room)).to(next(self.clip.parameters()).device)
        return F.normalize(self.clip.encode_text(padded).float(), dim=-1)

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """None."""
        return []

    def prompts_state(self) -> Mapping[str, Tensor]:
        """None."""
        return {}


EvaluatedModel = DGL | FrozenClip
"""What evaluation encodes with."""
