"""Where a result comes from: what its model is, how it was chosen, and with which packages it was computed."""

import importlib.metadata
import platform
from typing import Any

from dgl_scale.config import RunConfig
from dgl_scale.data.index import SplitIndex
from dgl_scale.data.location import dataset_name
from dgl_scale.errors import DglError
from dgl_scale.evaluation.results import Checkpoint
from dgl_scale.evaluation.splits import absolute, open_split
from dgl_scale.model.frozen_clip import EvaluatedModel
from dgl_scale.model.weights import read_prompts_metadata

_VERSIONS_OF = ("dgl-scale", "torch", "open_clip_torch", "ray", "deepspeed", "webdataset", "numpy")


def model_facts(config: RunConfig, model: EvaluatedModel, checkpoint: Checkpoint) -> dict[str, Any]:
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


def training_facts(config: RunConfig, checkpoint: Checkpoint, index: SplitIndex) -> dict[str, Any]:
    """`dataset`, what is evaluated; `trained_on`, what the prompts were trained on by their own card; and `transfer`.

    `transfer` is whether these are two datasets, None where it is not known. Of a frozen CLIP both are null.
    """
    dataset = dataset_name(index.shards[0])
    if checkpoint.prompts is None:
        return {"dataset": dataset, "trained_on": None, "transfer": None}
    card = read_prompts_metadata(checkpoint.prompts)["extra"]
    trained_on = {key: card.get(key) for key in ("run", "dataset", "shards", "step")}
    if trained_on["dataset"] is None and config.data.train is not None:
        trained_on["dataset"] = _dataset_of(card.get("shards"), config)
    known = dataset is not None and trained_on["dataset"] is not None
    return {"dataset": dataset, "trained_on": trained_on, "transfer": dataset != trained_on["dataset"] if known else None}


def _dataset_of(digest: Any, config: RunConfig) -> str | None:
    """The name of the dataset with this digest, if it is the config's training split: for prompts that do not say it."""
    try:
        index = open_split(config, absolute(str(config.data.train)))
    except DglError:
        return None
    return dataset_name(index.shards[0]) if index.digest == digest else None


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
