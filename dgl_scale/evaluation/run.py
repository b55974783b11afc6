"""One evaluation from its config: encode with workers, rank, write the results."""

import importlib.metadata
import platform
import time
from pathlib import Path
from typing import Any

import torch

from dgl_scale.config import RunConfig
from dgl_scale.data.index import load_split
from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.errors import ConfigError
from dgl_scale.evaluation.attention_picture import attention_examples
from dgl_scale.evaluation.embedding import load_model, read_annotations
from dgl_scale.evaluation.results import Checkpoint, evaluation_folder, resolve_checkpoint, write_results
from dgl_scale.evaluation.retrieval import evaluate_features
from dgl_scale.evaluation.workers import EncodingJob, Progress, encode_with_workers
from dgl_scale.model import DGL
from dgl_scale.model.precision import Precision, fastest_precision
from dgl_scale.storage.urls import is_url, public_url

_VERSIONS_OF = ("dgl-scale", "torch", "open_clip_torch", "ray", "deepspeed", "webdataset", "numpy")


def evaluate_checkpoint(
    config: RunConfig, checkpoint_argument: str, device: str, *, command: list[str], progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """Evaluate what `--checkpoint` names on the config's split; returns the results' folder and content.

    Args:
        device: `cpu`, `cuda` or `auto` (cuda where this machine, or each worker, has a GPU).
        command: how to repeat this, for the results.

    Raises:
        ConfigError: the config names no such split, or the cluster lacks what the workers need.
        CheckpointError: the checkpoint is missing, damaged or of another model.
        DataError: shards cannot be read, or a feature is not finite.
    """
    started = time.monotonic()
    split = config.evaluation.split
    split_folder = getattr(config.data, split)
    if split_folder is None:
        raise ConfigError(f"data.{split} is missing: the folder of the {split} split's shards")
    checkpoint = resolve_checkpoint(checkpoint_argument)
    index = load_split(split_folder, cache=config.data.cache)
    config, device = _place(config, device)
    if config.training.precision == "auto":
        config = _with_precision(config, fastest_precision(torch.device(device)))
    # Loading here first also tells a wrong checkpoint before any worker starts. In fp32, which every CPU computes.
    model = load_model(_with_precision(config, "fp32"), checkpoint.prompts, torch.device("cpu"))
    job = EncodingJob(config, checkpoint.prompts, _absolute(split_folder), device)
    features = encode_with_workers(job, index.num_videos, progress)
    annotations = read_annotations(index, features.keys)
    retrieval = evaluate_features(features, config.evaluation, twins=annotations.twins, seed=config.seed)
    results = {
        **retrieval.figures,
        **_count_parameters(model, checkpoint),
        "model": _describe(config, checkpoint),
        "checkpoint": checkpoint.name if checkpoint.prompts is None else str(checkpoint.prompts),
        "step": checkpoint.step,
        "selection": _selection(config, checkpoint),
        "split": split,
        "shards": index.digest,
        "split_folder": public_url(job.split_folder),
        "seconds": round(time.monotonic() - started, 3),
        "command": command,
        "versions": package_versions(),
    }
    folder = evaluation_folder(Path(config.output).expanduser() / config.name, checkpoint, split)
    tokenizer = load_tokenizer(config.model.clip, config.data.max_words)
    attention = attention_examples(model, index, tokenizer, config, features, retrieval.ranking.text_to_video)
    write_results(folder, results, retrieval, features, annotations, step=checkpoint.step, attention=attention)
    return folder, results


def _place(config: RunConfig, device: str) -> tuple[RunConfig, str]:
    """The config with GPUs for the workers where they shall use one, and the device."""
    evaluation = config.evaluation
    num_gpus = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and num_gpus == 0 and evaluation.gpus_per_worker == 0):
        return config.model_copy(update={"evaluation": evaluation.model_copy(update={"gpus_per_worker": 0.0})}), "cpu"
    if evaluation.gpus_per_worker > 0:
        return config, "cuda"
    if num_gpus == 0:
        raise ConfigError(
            "device cuda was asked for, but torch sees no GPU; use --device cpu, or set evaluation.gpus_per_worker for a cluster"
        )
    # Ray counts GPUs in ten-thousandths; several workers share one where there are fewer GPUs than workers.
    share = min(1.0, int(10_000 * num_gpus / evaluation.num_workers) / 10_000)
    return config.model_copy(update={"evaluation": evaluation.model_copy(update={"gpus_per_worker": share})}), "cuda"


def _with_precision(config: RunConfig, precision: Precision) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"precision": precision})})


def _count_parameters(model: DGL, checkpoint: Checkpoint) -> dict[str, Any]:
    trained = sum(parameter.numel() for _, parameter in model.trainable_parameters()) if checkpoint.prompts is not None else 0
    total = sum(parameter.numel() for parameter in model.parameters())
    return {"trained_parameters": trained, "trained_share": trained / total}


def _describe(config: RunConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "clip": config.model.clip,
        "latent_space": None if checkpoint.prompts is None else config.model.latent_space,
        "num_frames": config.model.num_frames,
        "precision": config.training.precision,
        "seed": config.seed,
    }


def _selection(config: RunConfig, checkpoint: Checkpoint) -> str:
    if not checkpoint.chosen_by_validation or config.data.validation is None:
        return checkpoint.selection
    if _absolute(getattr(config.data, config.evaluation.split)) == _absolute(config.data.validation):
        return f"{checkpoint.selection}; chosen on the split evaluated here, so the figures are optimistic"
    return checkpoint.selection


def _absolute(split: str) -> str:
    return split if is_url(split) else str(Path(split).expanduser().resolve())


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
