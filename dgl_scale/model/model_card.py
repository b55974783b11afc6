"""A model card for a prompts file: Markdown with metadata at its head, as model hubs show it."""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from dgl_scale.config import ModelConfig

_TAGS = ["text-video-retrieval", "video", "clip", "prompt-tuning", "dgl"]
_PAPER = "https://arxiv.org/abs/2401.10588"


def model_card(metadata: Mapping[str, Any], *, base_model: str | None = None, model_license: str | None = None) -> str:
    """The card of a prompts file.

    Args:
        metadata: as `read_prompts_metadata` gives it.
        base_model: the frozen CLIP's own name on the hub, OWNER/NAME; links the two.
        model_license: an SPDX name in small letters; none is claimed without it.
    """
    config: ModelConfig = metadata["model"]
    extra = metadata["extra"]
    name = extra.get("run") or "DGL prompts"
    head: dict[str, Any] = {"library_name": "dgl_scale", "tags": _TAGS}
    head |= {"license": model_license} if model_license else {}
    head |= {"base_model": base_model, "base_model_relation": "adapter"} if base_model else {}
    head |= {"model-index": _index(name, extra)} if extra.get("validation") else {}
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        f"# {_plain(name)}",
        "",
        f"[DGL]({_PAPER}) prompts for text-video retrieval over a frozen CLIP, {_plain(_shown(metadata['clip']))}. CLIP's weights are",
        f"not in the file: it belongs to weights whose SHA-256 is {metadata['backbone_sha256']}, and is refused over others.",
        "",
        *_facts(config, metadata),
        "",
        "```python",
        "from dgl_scale.config import ModelConfig",
        "from dgl_scale.model import build_model, load_prompts",
        "",
        f"model = build_model(ModelConfig({_arguments(config)}))",
        'load_prompts(model, "prompts.safetensors")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _facts(config: ModelConfig, metadata: Mapping[str, Any]) -> list[str]:
    extra = metadata["extra"]
    facts = {
        "latent space": config.latent_space,
        "frames a video": config.num_frames,
        "trained on": extra.get("dataset"),
        "step": extra.get("step"),
        "made by": f"dgl_scale {metadata['dgl_scale']}",
    }
    facts |= {f"validation, {name}": f"{value:.1f}" for name, value in extra.get("validation", {}).items()}
    return ["| | |", "|---|---|", *(f"| {_plain(name)} | {_plain(value)} |" for name, value in facts.items() if value is not None)]


def _index(name: str, extra: Mapping[str, Any]) -> list[dict[str, Any]]:
    dataset = extra.get("dataset") or "unnamed"
    metrics = [{"type": metric, "name": metric, "value": round(value, 4)} for metric, value in extra["validation"].items()]
    where = {"type": dataset, "name": dataset, "split": "validation"}
    return [{"name": name, "results": [{"task": {"type": "text-video-retrieval"}, "dataset": where, "metrics": metrics}]}]


def _arguments(config: ModelConfig) -> str:
    """What differs from the defaults; of paths the file's name alone, since the rest is this machine's."""
    given = config.model_dump(exclude_defaults=True)
    return ", ".join(f"{key}={(_shown(value) if key in {'clip', 'pretrained'} else value)!r}" for key, value in given.items())


def _shown(value: str) -> str:
    return PurePath(value).name


def _plain(value: object) -> str:
    """Without what Markdown or HTML would take for its own."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(str(value).split()))
