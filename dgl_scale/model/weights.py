"""Prompts files: trained prompts as safetensors that name the model they belong to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

import dgl_scale
from dgl_scale.config import ModelConfig
from dgl_scale.errors import CheckpointError
from dgl_scale.files import atomic_file
from dgl_scale.model.dgl import DGL

FORMAT_VERSION = 1

# One entry, since safetensors writes several in random order and equal prompts shall give equal files.
_METADATA_KEY = "dgl_prompts"

# What a prompts file shares with every model it fits; the rest says where weights are, or what is read at the end.
_FITTING_KEYS = ("latent_space", "num_local_prompts", "num_global_prompts", "num_prefix_prompts", "num_postfix_prompts", "video_feature")


def save_prompts(model: DGL, path: str | Path, extra: dict[str, Any] | None = None, *, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the prompts of a model; `extra` (JSON values) travels with them.

    Args:
        state: fp32 prompts by the names of `prompts_state`, in place of the model's own: in training the masters
            are with the engine, and under ZeRO-3 no rank's model is whole.

    Raises:
        CheckpointError: the model has no prompts, or one holds NaN or infinity.
        DglError: the file cannot be written; an older one under its name is kept.
    """
    write_prompts(path, model.config, model.backbone_digest, model.prompts_state() if state is None else state, extra)


def write_prompts(
    path: str | Path, config: ModelConfig, backbone_digest: str | None, state: Mapping[str, Tensor], extra: dict[str, Any] | None
) -> None:
    """`save_prompts` where there is no model: of `config`, over a CLIP with weights of this digest."""
    state = {name: tensor.float().cpu().contiguous() for name, tensor in state.items()}
    if not state:
        raise CheckpointError("a frozen CLIP (latent_space: null) has no prompts to save")
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"prompts hold NaN or infinity in {name} and are not saved to {path}")
    card = {
        "format": FORMAT_VERSION,
        "clip": config.clip,
        "backbone_sha256": backbone_digest,
        "model": config.model_dump(mode="json"),
        "dgl_scale": dgl_scale.__version__,
        "extra": extra or {},
    }
    metadata = {_METADATA_KEY: json.dumps(card, sort_keys=True, ensure_ascii=False, allow_nan=False)}
    with atomic_file(Path(path)) as stream:
        stream.write(save(state, metadata))


def read_prompts_metadata(path: str | Path) -> dict[str, Any]:
    """What a prompts file says of itself: `clip`, `backbone_sha256`, `model` (a `ModelConfig`), `dgl_scale`, `extra`, `format`.

    Raises:
        CheckpointError: no such file, or no prompts file of this format.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
    except OSError as error:
        raise CheckpointError(f"cannot read prompts {path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"prompts {path} are damaged or no safetensors: {error}") from error
    if text is None:
        raise CheckpointError(f"{path} holds tensors but no prompts; save_prompts writes prompts files")
    try:
        card: dict[str, Any] = json.loads(text)
        if card["format"] != FORMAT_VERSION:
            raise CheckpointError(f"prompts {path} have format {card['format']}, this version reads format {FORMAT_VERSION}")
        return {**card, "model": ModelConfig.model_validate(card["model"])}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"prompts {path} describe themselves wrongly: {str(error).splitlines()[0]}") from error


def read_prompts(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a prompts file says of itself, and its fp32 tensors by name; errors as in `read_prompts_metadata`."""
    metadata = read_prompts_metadata(path)
    with safetensors.safe_open(path, framework="pt") as file:
        return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def load_prompts(model: DGL, path: str | Path) -> dict[str, Any]:
    """Put saved prompts into a model and return the file's metadata.

    Raises:
        CheckpointError: the file is damaged, or made for another CLIP or other prompts; names both sides.
    """
    metadata, state = read_prompts(path)
    _check_fit(model, metadata, path)
    try:
        model.load_prompts_state(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return metadata


def _check_fit(model: DGL, metadata: dict[str, Any], path: str | Path) -> None:
    theirs, ours = metadata["model"], model.config
    differing = [key for key in _FITTING_KEYS if getattr(theirs, key) != getattr(ours, key)]
    if "transformer" in (theirs.latent_space, ours.latent_space) and theirs.num_frames != ours.num_frames:
        differing.append("num_frames")
    if _depth(theirs, model) != _depth(ours, model):
        differing.append("prompt_depth")
    if metadata["backbone_sha256"] != model.backbone_digest:
        raise CheckpointError(
            f"prompts {path} belong to {metadata['clip']} with weights {metadata['backbone_sha256'][:12]}, "
            f"this model is {ours.clip} with weights {(model.backbone_digest or 'none')[:12]}"
        )
    if differing:
        given = ", ".join(f"{key} {getattr(theirs, key)}" for key in differing)
        wanted = ", ".join(f"{key} {getattr(ours, key)}" for key in differing)
        raise CheckpointError(f"prompts {path} were trained with {given}, this model has {wanted}")


def _depth(config: ModelConfig, model: DGL) -> int:
    return config.prompt_depth or model.shape.vision.num_layers
