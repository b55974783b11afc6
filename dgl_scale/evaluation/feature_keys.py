"""The digests that features are stored under: of everything that decides their bits, and of nothing else.

That is CLIP's weights and shape, the prompts that the tower reads, the samples by their hash, what is done to them
before the model (frames, image size, tokens), the composition of the batch, and how the arithmetic is done.
"""

import hashlib
from dataclasses import asdict
from typing import Any

import torch

from dgl_scale.config import RunConfig
from dgl_scale.data.index import SplitIndex
from dgl_scale.data.tokenizer import Tokenizer
from dgl_scale.evaluation.units import Unit
from dgl_scale.files import json_sha256
from dgl_scale.model.frozen_clip import EvaluatedModel

_FORMAT = 1
_PROMPT_KEYS = ("latent_space", "num_local_prompts", "num_global_prompts", "num_prefix_prompts", "num_postfix_prompts", "prompt_depth")
# Parts of the prompts' names that one tower alone reads; postfix prompts are behind the causal mask, read by none.
_TEXT_ONLY = ("latent_space.prefix.", "latent_space.to_text.")
_VIDEO_ONLY = ("global_prompts",)
_UNREAD = ("latent_space.postfix.",)


class FeatureKeys:
    """Keys of the units of one model under one config.

    Args:
        model: the prompts that it has now are those of the features.
        config: with a resolved precision.
        device: type of the device that encodes.
    """

    def __init__(self, model: EvaluatedModel, tokenizer: Tokenizer, config: RunConfig, device: str) -> None:
        arithmetic: dict[str, Any] = {"torch": torch.__version__, "device": device, "precision": config.training.precision}
        if device == "cpu":
            # The order of float sums depends on the number of threads.
            arithmetic["threads"] = max(1, int(config.evaluation.cpus_per_worker))
        clip = {"weights": model.backbone_digest, "shape": asdict(model.shape)}
        common = {"format": _FORMAT, "clip": clip, "arithmetic": arithmetic}
        self._frames = json_sha256(
            {
                **common,
                "prompts": prompts_digest(model, (*_TEXT_ONLY, *_UNREAD)),
                "video_feature": None if model.prompts is None else model.config.video_feature,
                "num_frames": config.model.num_frames,
                "normalisation": [model.image_mean, model.image_std],
            }
        )
        self._captions = json_sha256(
            {
                **common,
                "prompts": prompts_digest(model, (*_VIDEO_ONLY, *_UNREAD)),
                "tokens": tokenizer.digest,
                "batch_size": config.evaluation.batch_size,
            }
        )

    def frames(self, unit: Unit, index: SplitIndex) -> str:
        """Key of the unit's video features."""
        return _unit_key(self._frames, unit, index)

    def captions(self, unit: Unit, index: SplitIndex) -> str:
        """Key of the unit's caption features."""
        return _unit_key(self._captions, unit, index)


def _unit_key(recipe: str, unit: Unit, index: SplitIndex) -> str:
    return hashlib.sha256(recipe.encode() + index.sha256[unit.start : unit.stop].tobytes()).hexdigest()


def prompts_digest(model: EvaluatedModel, ignored: tuple[str, ...] = ()) -> str | None:
    """Of the prompts (without those whose names begin as `ignored`) and of how they are laid out; None for a frozen CLIP."""
    if model.prompts is None:
        return None
    layout = [getattr(model.config, key) for key in _PROMPT_KEYS]
    digest = hashlib.sha256(json_sha256(layout).encode())
    for name, tensor in sorted(model.prompts_state().items()):
        if not name.startswith(ignored):
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
