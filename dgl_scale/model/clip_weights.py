"""Weights of a CLIP: read from files without running code, checked, named as the frozen towers name them.

The activation's factor and layer scale are folded into neighbouring weights: exact algebra, one kernel less.
"""

import argparse
import hashlib
import pickle
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from dgl_scale.errors import CheckpointError
from dgl_scale.files import file_sha256
from dgl_scale.model.clip_shape import ClipShape, TowerShape

QUICK_GELU_FACTOR = 1.702  # x * sigmoid(1.702 x), OpenAI's CLIP

_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
# Constants and buffers that some exports carry; no weights.
_IGNORED = {"input_resolution", "context_length", "vocab_size", "attn_mask", "logit_bias", "visual.position_ids"}
# What stands beside the CLIP in checkpoints of the published DGL.
PUBLISHED_PROMPTS = (
    "visual.prompt_embeddings",
    "visual_prompt_embedding",
    "prefix_text_prompt_proj_layer",
    "postfix_text_prompt_proj_layer",
    "unified_prompt_embedding",
    "PromptTransformer",
    "unified_prompt_mlp",
)


def read_state_dict(path: Path, trusted_archives: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors of a weights file, float32 on the CPU, under open_clip's names.

    Of a checkpoint of the published DGL, only the CLIP in it. Formats and errors as in `read_tensors`.
    """
    tensors = {_plain_name(name): tensor for name, tensor in read_tensors(path, trusted_archives).items()}
    state = {name: value.float() for name, value in tensors.items() if name not in _IGNORED and not name.startswith(PUBLISHED_PROMPTS)}
    if "logit_scale" in state and state["logit_scale"].numel() == 1:
        state["logit_scale"] = state["logit_scale"].reshape(())
    return state


def read_tensors(path: Path, trusted_archives: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors of a weights file as they are stored, on the CPU, without the prefixes of parallel and compiled modules.

    Reads safetensors, files that `torch.load(weights_only=True)` reads, and TorchScript archives whose SHA-256
    is in `trusted_archives` (an archive is a program; OpenAI published its weights so).

    Raises:
        CheckpointError: the file is missing, damaged, holds code, or holds no tensors.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_torch_file(path, trusted_archives)
    except OSError as error:
        raise CheckpointError(f"cannot read weights {path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"weights {path} are damaged or no safetensors: {error}") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"weights {path} hold no state dict of tensors")
    return {_without_wrappers(str(name)): value.detach() for name, value in content.items() if isinstance(value, Tensor)}


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a program with its weights."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def state_digest(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().float().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_state(state: dict[str, Tensor], shape: ClipShape, source: str) -> None:
    """Refuse a state dict that is not of a CLIP of this shape, or not finite.

    Raises:
        CheckpointError: names the first missing, unknown, misshapen or non-finite tensor.
    """
    expected = dict(expected_shapes(shape))
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        reasons = [f"{len(missing)} missing, such as {missing[0]}"] * bool(missing)
        reasons += [f"{len(unknown)} unknown, such as {unknown[0]}"] * bool(unknown)
        raise CheckpointError(f"weights {source} are not of this model: tensors {' and '.join(reasons)}")
    for name, size in expected.items():
        if state[name].shape != torch.Size(size):
            raise CheckpointError(f"weights {source} are not of this model: {name} is {list(state[name].shape)}, expected {list(size)}")
        if not torch.isfinite(state[name]).all():
            raise CheckpointError(f"weights {source} are damaged: {name} holds NaN or infinity")


def tower_states(state: dict[str, Tensor], shape: ClipShape, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dicts of `VideoTower` and `TextTower` in `dtype`, made from one under open_clip's names."""
    # Folding in the wider of the two types rounds once.
    wide = {name: tensor.to(torch.promote_types(torch.float32, dtype)) for name, tensor in state.items()}
    video = {
        "embedding.patches.weight": wide["visual.conv1.weight"].flatten(1),
        "embedding.class_embedding": wide["visual.class_embedding"],
        "embedding.positional_embedding": wide["visual.positional_embedding"],
        "projection.weight": wide["visual.proj"].T,
    }
    text = {
        "embedding.tokens.weight": wide["token_embedding.weight"],
        "embedding.positional_embedding": wide["positional_embedding"],
        "projection.weight": wide["text_projection"].T,
    }
    for kind in ("weight", "bias"):
        if shape.has_ln_pre:
            video[f"embedding.ln_pre.{kind}"] = wide[f"visual.ln_pre.{kind}"]
        video[f"ln_post.{kind}"] = wide[f"visual.ln_post.{kind}"]
        text[f"ln_final.{kind}"] = wide[f"ln_final.{kind}"]
    for index in range(shape.vision.num_layers):
        video |= _layer_state(wide, f"visual.transformer.resblocks.{index}.", f"layers.{index}.", shape.vision)
    for index in range(shape.text.num_layers):
        text |= _layer_state(wide, f"transformer.resblocks.{index}.", f"layers.{index}.", shape.text)
    return _cast(video, dtype), _cast(text, dtype)


def _layer_state(state: dict[str, Tensor], source: str, target: str, tower: TowerShape) -> dict[str, Tensor]:
    layer = {}
    factor = QUICK_GELU_FACTOR if tower.activation == "quick_gelu" else 1.0
    scales = [state[f"{source}{name}.gamma"] if tower.has_layer_scale else None for name in ("ls_1", "ls_2")]
    for kind in ("weight", "bias"):
        layer[f"ln_1.{kind}"] = state[f"{source}ln_1.{kind}"]
        layer[f"ln_2.{kind}"] = state[f"{source}ln_2.{kind}"]
        query_key_value = state[f"{source}attn.in_proj_{kind}"]
        layer[f"query.{kind}"], layer[f"key_value.{kind}"] = query_key_value[: tower.width], query_key_value[tower.width :]
        layer[f"out.{kind}"] = _scale_rows(state[f"{source}attn.out_proj.{kind}"], scales[0])
        layer[f"mlp_in.{kind}"] = state[f"{source}mlp.c_fc.{kind}"] * factor
        layer[f"mlp_out.{kind}"] = _scale_rows(state[f"{source}mlp.c_proj.{kind}"], scales[1])
    layer["mlp_out.weight"] = layer["mlp_out.weight"] / factor
    return {target + name: tensor for name, tensor in layer.items()}


def _scale_rows(tensor: Tensor, scale: Tensor | None) -> Tensor:
    return tensor if scale is None else tensor * scale.view(-1, *[1] * (tensor.ndim - 1))


def _cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    # Copies: a slice or a transpose would keep the whole original alive and share its storage.
    return {name: tensor.to(dtype, copy=True, memory_format=torch.contiguous_format) for name, tensor in state.items()}


def expected_shapes(shape: ClipShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes of all tensors of a CLIP, under open_clip's names."""
    vision, text = shape.vision, shape.text
    yield "visual.conv1.weight", (vision.width, 3, shape.patch_size, shape.patch_size)
    yield "visual.class_embedding", (vision.width,)
    yield "visual.positional_embedding", (shape.num_patches + 1, vision.width)
    yield "visual.proj", (vision.width, shape.embed_dim)
    yield "token_embedding.weight", (shape.vocab_size, text.width)
    yield "positional_embedding", (shape.context_length, text.width)
    yield "text_projection", (text.width, shape.embed_dim)
    yield "logit_scale", ()
    for kind in ("weight", "bias"):
        if shape.has_ln_pre:
            yield f"visual.ln_pre.{kind}", (vision.width,)
        yield f"visual.ln_post.{kind}", (vision.width,)
        yield f"ln_final.{kind}", (text.width,)
    for index in range(vision.num_layers):
        yield from _expected_layer(f"visual.transformer.resblocks.{index}.", vision)
    for index in range(text.num_layers):
        yield from _expected_layer(f"transformer.resblocks.{index}.", text)


def _expected_layer(prefix: str, tower: TowerShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, hidden = tower.width, tower.mlp_width
    weights: dict[str, tuple[int, ...]] = {"attn.in_proj_": (3 * width, width), "attn.out_proj.": (width, width)}
    weights |= {"mlp.c_fc.": (hidden, width), "mlp.c_proj.": (width, hidden)}
    for name, size in weights.items():
        yield f"{prefix}{name}weight", size
        yield f"{prefix}{name}bias", size[:1]
    for name in ("ln_1", "ln_2"):
        yield f"{prefix}{name}.weight", (width,)
        yield f"{prefix}{name}.bias", (width,)
    if tower.has_layer_scale:
        yield f"{prefix}ls_1.gamma", (width,)
        yield f"{prefix}ls_2.gamma", (width,)


def _read_torch_file(path: Path, trusted_archives: Collection[str]) -> Any:
    if is_torchscript(path):
        if file_sha256(path) not in trusted_archives:
            raise CheckpointError(
                f"weights {path} are a TorchScript program that OpenAI did not publish; save its state dict as safetensors"
            )
        return torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    try:
        # Training checkpoints often carry their command line's options; that class holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"weights {path} hold pickled code and are not loaded; save the plain state dict as safetensors") from error
    except (RuntimeError, EOFError, KeyError, ValueError, IndexError, AttributeError) as error:
        raise CheckpointError(f"weights {path} are damaged or no weights file ({type(error).__name__})") from error


def _without_wrappers(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _plain_name(name: str) -> str:
    # The published DGL keeps its CLIP under "clip.", open_clip's CustomTextCLIP the same text tower under "text.".
    return name.removeprefix("clip.").removeprefix("text.")
