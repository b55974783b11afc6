"""Which frozen CLIP: its shape and its weights, by open_clip's names; one of the two doors to open_clip.

Supported is what DGL is defined for: a plain ViT with a class token beside a causal text tower that is read at
the end-of-text token. Everything else that open_clip can build is refused by name.
"""

import difflib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dgl_scale.errors import CheckpointError, ConfigError, DataError
from dgl_scale.files import read_json
from dgl_scale.model.clip_shape import ClipShape, TowerShape
from dgl_scale.model.clip_weights import is_torchscript, read_state_dict, state_digest
from dgl_scale.torchvision_import import import_open_clip

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

_SUPPORTED = "supported are open_clip's ViT models with a causal text tower read at end-of-text, such as ViT-B-32-quickgelu or ViT-L-14"
# Keys of open_clip's tower configs that the towers here follow, or that change nothing in a frozen forward pass.
_VISION_KEYS = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value", "patch_dropout", "no_ln_pre"}
_VISION_KEYS |= {"act_kwargs", "norm_kwargs", "pos_embed_type", "final_ln_after_pool"}
_TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value", "act_kwargs", "norm_kwargs"}
_TEXT_KEYS |= {"tokenizer_mode", "tokenizer_kwargs", "pad_id", "eos_id"}
_MODEL_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backbone:
    """A CLIP to be frozen.

    Attributes:
        state: float32 tensors on the CPU under open_clip's names; null if only the shape was asked for.
    """

    name: str
    shape: ClipShape
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    state: dict[str, Tensor] | None


def load_backbone(clip: str, pretrained: str | None, *, seed: int = 0, with_weights: bool = True) -> Backbone:
    """The CLIP that `clip` and `pretrained` of a `ModelConfig` name.

    Raises:
        ConfigError: an unknown or unsupported model, an unknown tag, or a tag trained with the other activation.
        CheckpointError: the weights file is missing, unsafe, damaged, or of another model.
    """
    open_clip = import_open_clip()
    model_config, preprocessing = _model_config(open_clip, clip)
    shape = _clip_shape(open_clip, clip, model_config)
    tag = {}
    if pretrained is not None and not Path(pretrained).expanduser().is_file():
        tag = _pretrained_tag(open_clip, clip, pretrained)
        preprocessing = {key: tag[key] for key in ("mean", "std") if key in tag} or preprocessing
    quick_gelu = bool(model_config.get("quick_gelu", False))
    _check_activation(open_clip, clip, pretrained, quick_gelu, tag)
    state = None
    if with_weights and pretrained is None:
        state = _random_state(open_clip, model_config, seed)
    elif with_weights and pretrained is not None:
        file = _download(open_clip, tag, clip, pretrained) if tag else Path(pretrained).expanduser()
        state = read_state_dict(file, _openai_digests(open_clip))
    mean, std = tuple(preprocessing.get("mean", OPENAI_MEAN)), tuple(preprocessing.get("std", OPENAI_STD))
    return Backbone(clip, shape, mean, std, state)


@dataclass(frozen=True)
class OpenClipModel:
    """A model as open_clip builds it, of any kind.

    Attributes:
        module: with `encode_image`, `encode_text` and `logit_scale`; float32 on the CPU.
        config: open_clip's config of it, as canonical JSON.
        digest: SHA-256 of its weights.
    """

    module: Any
    config: str
    image_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    context_length: int
    digest: str


def supports_prompts(clip: str) -> bool:
    """Whether DGL is defined for a model.

    Raises:
        ConfigError: open_clip does not know it.
    """
    open_clip = import_open_clip()
    model_config, _ = _model_config(open_clip, clip)
    try:
        _clip_shape(open_clip, clip, model_config)
    except ConfigError:
        return False
    return True


def load_open_clip_model(clip: str, pretrained: str | None, *, seed: int) -> OpenClipModel:
    """Any model of open_clip that reads frames of one square size.

    Raises:
        ConfigError: an unknown model or tag, one that cannot be built here, or weights of the other activation.
        CheckpointError: the weights file is missing, unsafe, damaged, or of another model.
    """
    open_clip = import_open_clip()
    model_config, preprocessing = _model_config(open_clip, clip)
    is_file = pretrained is not None and Path(pretrained).expanduser().is_file()
    tag = _pretrained_tag(open_clip, clip, pretrained) if pretrained is not None and not is_file else {}
    _check_activation(open_clip, clip, pretrained, bool(model_config.get("quick_gelu", False)), tag)
    module = _build_module(open_clip, clip, model_config, seed)
    if pretrained is not None:
        file = _download(open_clip, tag, clip, pretrained) if tag else Path(pretrained).expanduser()
        _load_weights(module, read_state_dict(file, _openai_digests(open_clip)), pretrained)
    size = module.visual.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    if height != width:
        raise ConfigError(f"model.clip {clip} reads frames of {height} by {width} pixels; only square ones are prepared")
    stated = {key: tag[key] for key in ("mean", "std") if key in tag} or preprocessing
    mean, std = tuple(stated.get("mean", OPENAI_MEAN)), tuple(stated.get("std", OPENAI_STD))
    text_config = json.dumps(model_config, sort_keys=True)
    return OpenClipModel(module, text_config, height, mean, std, module.context_length, state_digest(dict(module.state_dict())))


def _build_module(open_clip: ModuleType, clip: str, config: dict[str, Any], seed: int) -> Any:
    known = {key: value for key, value in config.items() if key != "custom_text"}
    kind = open_clip.CoCa if "multimodal_cfg" in known else open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return kind(**known)
    # Whatever a missing package or an odd config raises inside: the user's answer is the same.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"model.clip {clip} cannot be built here ({reason}); choose another model") from error


def _load_weights(module: Any, state: dict[str, Tensor], source: str) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise CheckpointError(f"weights {source} are not of this model: {' '.join(lines[1:2]).strip() or lines[0]}") from error


def _model_config(open_clip: ModuleType, clip: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """open_clip's config of the model, and the preprocessing stated beside it if any."""
    path = Path(clip).expanduser()
    if path.suffix != ".json":
        if clip not in open_clip.list_models():
            nearest = difflib.get_close_matches(clip, open_clip.list_models(), n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ConfigError(f"model.clip {clip!r} is neither a model of open_clip nor a model-config file (.json){hint}")
        return open_clip.get_model_config(clip), {}
    try:
        config = read_json(path)
    except DataError as error:
        raise ConfigError(f"model.clip: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"model.clip {clip} must hold a mapping, as open_clip's model configs do")
    return config.get("model_cfg", config), config.get("preprocess_cfg", {})


def _clip_shape(open_clip: ModuleType, clip: str, config: dict[str, Any]) -> ClipShape:
    _refuse_unknown(clip, "the model", config, {}, _MODEL_KEYS | {"custom_text"})
    if config.get("custom_text") or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise ConfigError(f"model.clip {clip} is not a plain CLIP; {_SUPPORTED}")
    try:
        vision, text = open_clip.CLIPVisionCfg(**config["vision_cfg"]), open_clip.CLIPTextCfg(**config["text_cfg"])
    except TypeError as error:
        raise ConfigError(f"model.clip {clip}: {error}; {_SUPPORTED}") from error
    _refuse_unknown(clip, "vision_cfg", asdict(vision), asdict(open_clip.CLIPVisionCfg()), _VISION_KEYS)
    _refuse_unknown(clip, "text_cfg", asdict(text), asdict(open_clip.CLIPTextCfg()), _TEXT_KEYS)
    size, patch = vision.image_size, vision.patch_size
    if not isinstance(vision.layers, int) or not isinstance(size, int) or not isinstance(patch, int) or size % patch:
        raise ConfigError(f"model.clip {clip} needs square frames that its patches divide, got {size} by {patch}; {_SUPPORTED}")
    if vision.width % vision.head_width or text.width % text.heads:
        raise ConfigError(f"model.clip {clip}: attention heads do not divide the widths {vision.width} and {text.width}")
    quick_gelu = bool(config.get("quick_gelu", False))
    return ClipShape(
        vision=_tower_shape(vision, vision.width // vision.head_width, quick_gelu),
        text=_tower_shape(text, text.heads, quick_gelu),
        embed_dim=config["embed_dim"],
        image_size=size,
        patch_size=patch,
        has_ln_pre=not vision.no_ln_pre,
        context_length=text.context_length,
        vocab_size=text.vocab_size,
    )


def _refuse_unknown(clip: str, where: str, given: dict[str, Any], defaults: dict[str, Any], known: set[str]) -> None:
    for key, value in given.items():
        if key not in known and (key not in defaults or value != defaults[key]):
            raise ConfigError(f"model.clip {clip}: {key} = {value!r} in {where} is not supported; {_SUPPORTED}")


def _tower_shape(tower: Any, num_heads: int, quick_gelu: bool) -> TowerShape:
    gelu = (tower.act_kwargs or {}).get("approximate", "none")
    return TowerShape(
        width=tower.width,
        num_layers=tower.layers,
        num_heads=num_heads,
        mlp_width=int(tower.width * tower.mlp_ratio),
        activation="quick_gelu" if quick_gelu else gelu,
        norm_eps=(tower.norm_kwargs or {}).get("eps", 1e-5),
        has_layer_scale=tower.ls_init_value is not None,
    )


def _random_state(open_clip: ModuleType, config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    known = {key: value for key, value in config.items() if key != "custom_text"}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return dict(open_clip.CLIP(**known).state_dict())


def _pretrained_tag(open_clip: ModuleType, clip: str, pretrained: str) -> dict[str, Any]:
    tag: dict[str, Any] = open_clip.get_pretrained_cfg(clip, pretrained)
    if not tag:
        known = open_clip.list_pretrained_tags_by_model(clip)
        tags = f"tags of {clip}: {', '.join(known)}" if known else f"open_clip has no tags for {clip}"
        raise ConfigError(f"model.pretrained {pretrained!r} is neither a file nor a tag of open_clip; {tags}")
    return tag


def _check_activation(open_clip: ModuleType, clip: str, pretrained: str | None, quick_gelu: bool, tag: dict[str, Any]) -> None:
    """Refuse weights under another activation than they were trained with, which costs points silently.

    open_clip marks its tags. The only archives that are read are OpenAI's, all of them QuickGELU. Other files say nothing.
    """
    if pretrained is None or (not tag and not is_torchscript(Path(pretrained).expanduser())):
        return
    wanted = bool(tag.get("quick_gelu", False)) if tag else True
    if wanted == quick_gelu:
        return
    other = f"{clip}-quickgelu" if wanted else clip.removesuffix("-quickgelu")
    remedy = f"set model.clip to {other}" if other in open_clip.list_models() else f"set quick_gelu to {str(wanted).lower()} in that file"
    conflict = f"QuickGELU, which {clip} is not" if wanted else f"GELU, but {clip} computes QuickGELU"
    raise ConfigError(f"model.pretrained {pretrained} was trained with {conflict}; {remedy}")


def _download(open_clip: ModuleType, tag: dict[str, Any], clip: str, pretrained: str) -> Path:
    _log.info("fetching the weights %s of %s (kept in the cache of open_clip)", pretrained, clip)
    try:
        return Path(open_clip.download_pretrained(tag))
    # Whatever the hub's client, the network or the disk raises: the user's answer is the same.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"cannot fetch weights {pretrained} of {clip} ({reason}); give the path of a weights file instead") from error


def _openai_digests(open_clip: ModuleType) -> frozenset[str]:
    """SHA-256 of OpenAI's own files, which name it in their address."""
    urls = [open_clip.get_pretrained_url(model, tag) for model, tag in open_clip.list_pretrained() if tag == "openai"]
    return frozenset(url.split("/")[-2] for url in urls if "openaipublic" in url)
