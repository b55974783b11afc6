"""Where a result comes from: what its model is, how it was chosen, and with which packages it was computed."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from dgl_scale.config import RunConfig
from dgl_scale.evaluation.results import Checkpoint
from dgl_scale.model import DGL
from dgl_scale.storage.urls import is_url

_VERSIONS_OF = ("dgl-scale", "torch", "open_clip_torch", "ray", "deepspeed", "webdataset", "numpy")


def model_facts(config: RunConfig, model: DGL, checkpoint: Checkpoint) -> dict[str, Any]:
    """`trained_parameters`, `trained_share` and `model` of a results.json."""
    trained = sum(parameter.numel() for _, parameter in model.trainable_parameters()) if checkpoint.prompts is not None else 0
    total = sum(parameter.numel() for parameter in model.parameters())
    return {
        "trained_parameters": trained,
        "trained_share": trained / total,
        "model": {
            "clip": config.model.clip,
            "latent_space": None if checkpoint.prompts is None else config.model.latent_space,
            "num_frames": config.model.num_frames,
            "precision": config.training.precision,
            "seed": config.seed,
        },
    }


def selection(config: RunConfig, checkpoint: Checkpoint) -> str:
    """How the checkpoint was chosen, with a warning where it was chosen on what is evaluated."""
    if not checkpoint.chosen_by_validation or config.data.validation is None:
        return checkpoint.selection
    if absolute(getattr(config.data, config.evaluation.split)) == absolute(config.data.validation):
        return f"{checkpoint.selection}; chosen on the split evaluated here, so the figures are optimistic"
    return checkpoint.selection


def absolute(split: str) -> str:
    """Where a split is, for processes that may run in another folder."""
    return split if is_url(split) else str(Path(split).expanduser().resolve())


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
