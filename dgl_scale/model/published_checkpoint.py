"""Checkpoints of the published implementation of DGL (`.pth.tar`), in and out.

Its `state_dict` has, under `module.clip.` or `clip.`, OpenAI's names for the frozen CLIP and beside them
    visual.prompt_embeddings [1, G, D_v]                                           global prompts
    visual_prompt_embedding [1, N, K * D_v]                                        linear: the table, layer by layer
    prefix_text_prompt_proj_layer, postfix_text_prompt_proj_layer                  linear: D_v to D_t
    unified_prompt_embedding.weight [n_t + N * T, K * D_v]                         transformer: the table
    PromptTransformer.resblocks.0, unified_prompt_mlp.{c_fc,c_proj}                transformer: block and MLP
It does not say how many text prompts there are, which feature is read, and (linear) how many frames: those are
options of the published command line. That code runs with G = N, as many layers in both towers, all of them
prompted, 64 channels a head and QuickGELU; what it would compute otherwise is refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgl_scale.config import ModelConfig
from dgl_scale.errors import CheckpointError, ConfigError
from dgl_scale.files import atomic_file
from dgl_scale.model.backbone import Backbone, load_backbone
from dgl_scale.model.clip_shape import ClipShape
from dgl_scale.model.clip_weights import PUBLISHED_PROMPTS, check_state, expected_shapes, read_tensors, state_digest
from dgl_scale.model.prompts import Prompts
from dgl_scale.model.weights import read_prompts, write_prompts

VIDEO_FEATURES = {
    "global_0": "global_prompt0",
    "global_mean": "average_global_prompt",
    "frame_mean": "average_frame_cls_token",
    "global_and_frame_mean": "average_global_prompt_and_frame_cls_token",
}
"""Names of the video feature: ours, and values of the published `--visual_output_type` (but one, which cannot be trained there)."""

_PREFIX = "clip."
_GLOBAL, _LINEAR_TABLE, _TRANSFORMER_TABLE = "visual.prompt_embeddings", "visual_prompt_embedding", "unified_prompt_embedding.weight"
_POSITION_IDS = "visual.position_ids"
# A parameter that `--time_embedding` adds and that the published forward pass never reads.
_UNREAD = {_POSITION_IDS, "visual.frame_embedding"}
_HEAD_WIDTH = 64
_NUM_GLOBALS_IN_FEATURES = 4  # written out in the published `encode_image`

# Ours under `latent_space.`, theirs; equal in layout.
_LINEAR_NAMES = {
    "prefix": "prefix_text_prompt_proj_layer",
    "postfix": "postfix_text_prompt_proj_layer",
}
_TRANSFORMER_NAMES = {
    "block.ln_1": "PromptTransformer.resblocks.0.ln_1",
    "block.ln_2": "PromptTransformer.resblocks.0.ln_2",
    "block.query_key_value": "PromptTransformer.resblocks.0.attn.in_proj",
    "block.out": "PromptTransformer.resblocks.0.attn.out_proj",
    "block.mlp_in": "PromptTransformer.resblocks.0.mlp.c_fc",
    "block.mlp_out": "PromptTransformer.resblocks.0.mlp.c_proj",
    "to_text.mlp_in": "unified_prompt_mlp.c_fc",
    "to_text.mlp_out": "unified_prompt_mlp.c_proj",
}


@dataclass(frozen=True)
class Imported:
    """What was imported.

    Attributes:
        checkpoint_digest: SHA-256 of the CLIP in the checkpoint.
        backbone_digest: that of the named CLIP; where the digests differ, the two are equal once rounded to float16.
    """

    config: ModelConfig
    num_parameters: int
    checkpoint_digest: str
    backbone_digest: str


def import_checkpoint(
    path: Path,
    output: Path,
    *,
    clip: str,
    pretrained: str,
    num_text_prompts: int = 8,
    num_frames: int | None = None,
    video_feature: str = "global_0",
) -> Imported:
    """Write the prompts of a published checkpoint as a prompts file.

    Args:
        clip: the CLIP that it was trained over, as in `ModelConfig`; compared with the one inside.
        pretrained: its weights, likewise.
        num_text_prompts: of the published `--text_prompt_length`, half of them prefix.
        num_frames: null: as many as the table has (transformer), or 12 (linear).
        video_feature: a key of `VIDEO_FEATURES`.

    Raises:
        ConfigError: a CLIP or options that the published code cannot have run with.
        CheckpointError: the file is damaged or holds code; names are missing or unknown; another CLIP is inside.
    """
    stored = _read(path)
    backbone = load_backbone(clip, pretrained)
    shape = backbone.shape
    _check_shape(clip, shape)
    config = _config_of(path, stored, shape, ModelConfig(clip=clip, pretrained=pretrained), num_text_prompts, num_frames, video_feature)
    _check_config(config)
    prompts = {name: tensor for name, tensor in stored.items() if name.startswith(PUBLISHED_PROMPTS)}
    frozen = {name: tensor for name, tensor in stored.items() if name not in prompts and name not in _UNREAD}
    expected = _expected_prompts(config, shape)
    _check_names(path, prompts.keys() | frozen.keys(), expected.keys() | dict(expected_shapes(shape)).keys())
    for name, tensor in prompts.items():
        if tensor.shape != expected[name]:
            raise CheckpointError(f"checkpoint {path}: {name} is {list(tensor.shape)}, expected {list(expected[name])}")
    digests = _compare(path, frozen, backbone)
    state = _from_published(prompts, config, shape)
    write_prompts(output, config, digests[1], state, {"imported_from": path.name})
    return Imported(config, sum(tensor.numel() for tensor in state.values()), *digests)


def export_prompts(prompts_file: Path, output: Path, *, clip: str | None = None, pretrained: str | None = None) -> list[str]:
    """Write prompts and the CLIP under them (fp32) as a checkpoint that the published `--resume` loads.

    Args:
        clip: the CLIP, if it is not where the prompts file says.
        pretrained: its weights, likewise.

    Returns:
        the published command line's options that belong to it.

    Raises:
        ConfigError: prompts, or a CLIP, that the published code does not compute as they are meant.
        CheckpointError: a damaged prompts file, or a CLIP with other weights than it names.
    """
    metadata, prompts = read_prompts(prompts_file)
    config: ModelConfig = metadata["model"]
    given = {key: value for key, value in {"clip": clip, "pretrained": pretrained}.items() if value is not None}
    config = config.model_copy(update=given)
    backbone = load_backbone(config.clip, config.pretrained)
    assert backbone.state is not None
    check_state(backbone.state, backbone.shape, config.pretrained or config.clip)
    digest = state_digest(backbone.state)
    if digest != metadata["backbone_sha256"]:
        raise CheckpointError(
            f"prompts {prompts_file} belong to {metadata['clip']} with weights {str(metadata['backbone_sha256'])[:12]}, but {config.clip} "
            f"with pretrained {config.pretrained} has weights {digest[:12]}; say where they are with --clip and --pretrained"
        )
    _check_shape(config.clip, backbone.shape)
    _check_config(config)
    _check_depth(config.clip, backbone.shape, config.prompt_depth or backbone.shape.vision.num_layers)
    state = backbone.state | _to_published(prompts, config)
    state[_POSITION_IDS] = torch.arange(backbone.shape.num_patches + 1).expand(1, -1).clone()
    wrapped = {f"module.{_PREFIX}{name}": tensor for name, tensor in state.items()}
    step = metadata["extra"].get("step", 0)
    with atomic_file(output) as stream:
        torch.save({"epoch": 0, "global_step": step, "arch": "CLIp4Clip", "state_dict": wrapped, "best_acc1": 0.0}, stream)
    return _published_options(config, backbone.shape)


def _read(path: Path) -> dict[str, Tensor]:
    """All tensors of the checkpoint, fp32 (integers as they are), named as inside its CLIP."""
    tensors = read_tensors(path)
    outside = sorted(name for name in tensors if not name.startswith(_PREFIX))
    if outside:
        raise CheckpointError(f"{path} is no checkpoint of the published DGL: {_some(outside)} outside its {_PREFIX[:-1]}")
    return {name.removeprefix(_PREFIX): tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _config_of(
    path: Path,
    stored: dict[str, Tensor],
    shape: ClipShape,
    base: ModelConfig,
    num_text_prompts: int,
    num_frames: int | None,
    video_feature: str,
) -> ModelConfig:
    """The model that the tensors' sizes and the options amount to."""
    tables = [name for name in (_LINEAR_TABLE, _TRANSFORMER_TABLE) if name in stored]
    if len(tables) != 1 or _GLOBAL not in stored:
        wanted = f"{_GLOBAL} and one of {_LINEAR_TABLE} and {_TRANSFORMER_TABLE}"
        raise CheckpointError(f"{path} is no checkpoint of the published DGL, which has {wanted}")
    table, width = stored[tables[0]], shape.vision.width
    if stored[_GLOBAL].ndim != 3 or table.ndim < 2 or table.shape[-1] % width:
        raise CheckpointError(f"checkpoint {path}: {tables[0]} is {list(table.shape)}, no prompts of width {width} as {base.clip} has")
    _check_depth(base.clip, shape, table.shape[-1] // width)
    count = stored[_GLOBAL].shape[1]
    if tables[0] == _TRANSFORMER_TABLE:
        in_table, rest = divmod(len(table) - num_text_prompts, count)
        if rest or in_table < 1 or num_frames not in (None, in_table):
            wanted = f"{num_frames or 'the'} frames"
            raise ConfigError(
                f"checkpoint {path} has {len(table)} prompts a layer, not {num_text_prompts} for text and {count} for each of {wanted}; "
                "give --num-text-prompts and --num-frames as it was trained"
            )
        num_frames = in_table
    changes: dict[str, Any] = {
        "latent_space": "linear" if tables[0] == _LINEAR_TABLE else "transformer",
        "num_frames": base.num_frames if num_frames is None else num_frames,
        "num_local_prompts": count,
        "num_global_prompts": count,
        "num_prefix_prompts": num_text_prompts // 2,
        "num_postfix_prompts": num_text_prompts - num_text_prompts // 2,
        "video_feature": video_feature,
    }
    return base.model_copy(update=changes)


def _check_shape(clip: str, shape: ClipShape) -> None:
    """Refuse a CLIP that the published code would take and compute differently."""
    for name, tower in (("vision", shape.vision), ("text", shape.text)):
        reasons = {
            f"{tower.num_heads} heads over {tower.width} channels": tower.width != _HEAD_WIDTH * tower.num_heads,
            f"activation {tower.activation}": tower.activation != "quick_gelu",
            f"an MLP of {tower.mlp_width} channels": tower.mlp_width != 4 * tower.width,
            f"layer norms with eps {tower.norm_eps}": tower.norm_eps != 1e-5,
            "layer scale": tower.has_layer_scale,
            "no ln_pre": not shape.has_ln_pre,
        }
        for reason, holds in reasons.items():
            if holds:
                raise ConfigError(
                    f"{clip} has {reason} in its {name} tower; the published code knows OpenAI's CLIP only, such as ViT-B-32-quickgelu"
                )


def _check_depth(clip: str, shape: ClipShape, depth: int) -> None:
    if not depth == shape.vision.num_layers == shape.text.num_layers:
        raise ConfigError(
            f"prompts for {depth} layers over {clip} with {shape.vision.num_layers} vision and {shape.text.num_layers} text layers: "
            "the published code needs three equal numbers"
        )


def _check_config(config: ModelConfig) -> None:
    """Refuse counts that the published layout cannot express."""
    local, prefix, postfix = config.num_local_prompts, config.num_prefix_prompts, config.num_postfix_prompts
    if local != config.num_global_prompts:
        raise ConfigError(f"{local} local and {config.num_global_prompts} global prompts: the published layout has equal numbers of both")
    if prefix < 1 or postfix - prefix not in (0, 1):
        raise ConfigError(f"{prefix} prefix and {postfix} postfix prompts: the published layout halves one number of at least 2")
    if config.latent_space == "linear" and postfix > local:
        raise ConfigError(
            f"{postfix} postfix prompts of {local} rows: the published linear layout has no more text prompts of a kind than local ones"
        )
    if config.video_feature not in VIDEO_FEATURES:
        raise ConfigError(
            f"video_feature {config.video_feature} cannot be trained by the published code; it has {', '.join(VIDEO_FEATURES)}"
        )
    if config.video_feature != "global_0" and config.num_global_prompts != _NUM_GLOBALS_IN_FEATURES:
        raise ConfigError(f"video_feature {config.video_feature} with {local} global prompts: the published code reads it with 4 only")


def _check_names(path: Path, names: set[str], expected: set[str]) -> None:
    missing, unknown = sorted(expected - names), sorted(names - expected)
    if missing or unknown:
        parts = [f"missing {_some(missing)}"] * bool(missing) + [f"unknown {_some(unknown)}"] * bool(unknown)
        raise CheckpointError(f"checkpoint {path} is not of this CLIP and these prompts: {'; '.join(parts)}")


def _compare(path: Path, frozen: dict[str, Tensor], backbone: Backbone) -> tuple[str, str]:
    """Digests of the CLIP inside and of the named one, which must be equal up to storage in float16."""
    assert backbone.state is not None
    check_state(frozen, backbone.shape, str(path))
    check_state(backbone.state, backbone.shape, str(backbone.name))
    digests = state_digest(frozen), state_digest(backbone.state)
    different = [name for name, tensor in backbone.state.items() if not _equal_as_half(tensor, frozen[name])]
    if different:
        raise CheckpointError(
            f"checkpoint {path} holds another CLIP (weights {digests[0][:12]}) than {backbone.name} (weights {digests[1][:12]}): "
            f"{len(different)} of {len(frozen)} tensors differ, such as {different[0]}; say which with --clip and --pretrained, "
            "or take the one inside with --pretrained and this file"
        )
    return digests


def _equal_as_half(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or torch.equal(one.half(), other.half())


def _expected_prompts(config: ModelConfig, shape: ClipShape) -> dict[str, torch.Size]:
    with torch.device("meta"):
        state = dict(Prompts(config, shape).state_dict())
    return {name: tensor.shape for name, tensor in _to_published(state, config).items()}


def _to_published(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    table = state["latent_space.table"]
    published = {_GLOBAL: state["global_prompts"].unsqueeze(0)}
    if config.latent_space == "linear":
        published[_LINEAR_TABLE] = table.transpose(0, 1).flatten(1).unsqueeze(0)  # [K, N, D] to [1, N, K*D], layer-major
    else:
        published[_TRANSFORMER_TABLE] = table.flatten(1)  # [M, K, D] to [M, K*D], layer-major
    for ours, theirs in _renaming(config).items():
        published[theirs] = state[ours]
    return {name: tensor.contiguous() for name, tensor in published.items()}


def _from_published(published: dict[str, Tensor], config: ModelConfig, shape: ClipShape) -> dict[str, Tensor]:
    state = {"global_prompts": published[_GLOBAL].squeeze(0)}
    if config.latent_space == "linear":
        table = published[_LINEAR_TABLE].squeeze(0)  # [N, K*D]
        state["latent_space.table"] = torch.unflatten(table, 1, (-1, shape.vision.width)).transpose(0, 1)
    else:
        state["latent_space.table"] = torch.unflatten(published[_TRANSFORMER_TABLE], 1, (-1, shape.vision.width))
    for ours, theirs in _renaming(config).items():
        state[ours] = published[theirs]
    return state


def _renaming(config: ModelConfig) -> dict[str, str]:
    """Full names, ours to theirs, of the tensors whose layouts are equal."""
    modules = _LINEAR_NAMES if config.latent_space == "linear" else _TRANSFORMER_NAMES
    # PyTorch's own attention joins "in_proj" and the kind with an underscore.
    return {
        f"latent_space.{ours}.{kind}": f"{theirs}{'_' if theirs.endswith('in_proj') else '.'}{kind}"
        for ours, theirs in modules.items()
        for kind in ("weight", "bias")
    }


def _published_options(config: ModelConfig, shape: ClipShape) -> list[str]:
    return [
        f"--shared_latent_space {config.latent_space}",
        f"--text_prompt_length {config.num_prefix_prompts + config.num_postfix_prompts}",
        f"--local_each_frame_prompt_length {config.num_local_prompts}",
        f"--global_visual_prompt_length {config.num_global_prompts}",
        f"--unified_transformer_layers {shape.vision.num_layers}",
        f"--max_frames {config.num_frames}",
        f"--visual_output_type {VIDEO_FEATURES[config.video_feature]}",
        "--load_from_pretrained 1",
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
