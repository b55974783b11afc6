"""Evaluations from their config: encode with workers or take from the store, rank, write the results."""

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from dgl_scale.config import EvaluationConfig, RunConfig
from dgl_scale.data.index import load_split
from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.errors import ConfigError
from dgl_scale.evaluation.attention_picture import attention_examples
from dgl_scale.evaluation.embedding import load_model
from dgl_scale.evaluation.encoding import EncodedSplit, Progress, SplitEncoder
from dgl_scale.evaluation.provenance import absolute, model_facts, package_versions, selection
from dgl_scale.evaluation.results import Checkpoint, evaluation_folder, resolve_checkpoint, write_results
from dgl_scale.evaluation.retrieval import evaluate_features
from dgl_scale.model import DGL, load_prompts
from dgl_scale.model.precision import Precision, fastest_precision
from dgl_scale.storage.urls import public_url


def evaluate_checkpoint(
    config: RunConfig, checkpoint_argument: str, device: str, *, command: list[str], progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """Evaluate what `--checkpoint` names on the config's split; arguments, result and errors as of `Evaluator`."""
    split_folder(config)
    checkpoint = resolve_checkpoint(checkpoint_argument)
    with closing(Evaluator(config, device, frozen=checkpoint.prompts is None, command=command, progress=progress)) as evaluator:
        return evaluator.evaluate(checkpoint)


class Evaluator:
    """Evaluates one checkpoint after the other on the config's split with one set of workers; `close` ends them.

    Args:
        device: `cpu`, `cuda` or `auto` (cuda where this machine, or each worker, has a GPU).
        frozen: whether it is for the CLIP without prompts.
        command: how to repeat this, for the results.

    Raises:
        ConfigError: the config names no such split.
        DataError: the shards cannot be read.
    """

    def __init__(self, config: RunConfig, device: str, *, frozen: bool, command: list[str], progress: Progress) -> None:
        self._split = split_folder(config)
        self._index = load_split(self._split, cache=config.data.cache)
        config, device = _place(config, device)
        if config.training.precision == "auto":
            config = _with_precision(config, fastest_precision(torch.device(device)))
        self._config = config
        self._command = command
        self._tokenizer = load_tokenizer(config.model.clip, config.data.max_words)
        self._model: DGL | None = None
        self._encoder = SplitEncoder(config, self._tokenizer, frozen=frozen, device=device, progress=progress)

    def close(self) -> None:
        """End the workers."""
        self._encoder.close()

    def evaluate(self, checkpoint: Checkpoint) -> tuple[Path, dict[str, Any]]:
        """The results' folder and content.

        Raises:
            ConfigError: the cluster lacks what the workers need.
            CheckpointError: the checkpoint is missing, damaged or of another model.
            DataError: shards cannot be read, or a feature is not finite.
        """
        started = time.monotonic()
        config, evaluation = self._config, self._config.evaluation
        model = self._load(checkpoint)
        encoded = self._encoder.encode(model, self._index, self._split)
        features = encoded.features(float(model.logit_scale.exp()))
        annotations = encoded.annotations()
        retrieval = evaluate_features(features, evaluation, twins=annotations.twins, seed=config.seed)
        results = {
            **retrieval.figures,
            **model_facts(config, model, checkpoint),
            "checkpoint": checkpoint.name if checkpoint.prompts is None else str(checkpoint.prompts),
            "step": checkpoint.step,
            "selection": selection(config, checkpoint),
            "split": evaluation.split,
            "shards": self._index.digest,
            "split_folder": public_url(self._split),
            "encoded": _encoded_facts(encoded),
            "seconds": round(time.monotonic() - started, 3),
            "command": self._command,
            "versions": package_versions(),
        }
        folder = evaluation_folder(Path(config.output).expanduser() / config.name, checkpoint, evaluation.split)
        attention = attention_examples(model, self._index, self._tokenizer, config, features, retrieval.ranking.text_to_video)
        write_results(folder, results, retrieval, features, annotations, step=checkpoint.step, attention=attention)
        return folder, results

    def _load(self, checkpoint: Checkpoint) -> DGL:
        """The model in this process, which checks the prompts before any worker starts. In fp32, which every CPU computes."""
        if self._model is None:
            self._model = load_model(_with_precision(self._config, "fp32"), checkpoint.prompts, torch.device("cpu"))
        elif checkpoint.prompts is not None:
            load_prompts(self._model, checkpoint.prompts)
        return self._model


def split_folder(config: RunConfig) -> str:
    """Where the shards of the split are that is evaluated, in absolute terms; ConfigError where the config names none."""
    folder: str | None = getattr(config.data, config.evaluation.split)
    if folder is None:
        raise ConfigError(f"data.{config.evaluation.split} is missing: the folder of the {config.evaluation.split} split's shards")
    return absolute(folder)


def _encoded_facts(encoded: EncodedSplit) -> dict[str, int]:
    """How many videos went through each tower now; the features of the others were in the store."""
    return {"videos": encoded.encoded[0], "captions_of_videos": encoded.encoded[1]}


def _place(config: RunConfig, device: str) -> tuple[RunConfig, str]:
    """The config with GPUs for the workers where they shall use one, and the device."""
    num_gpus = torch.cuda.device_count()
    gpus_per_worker = config.evaluation.gpus_per_worker
    if device == "cpu" or (device == "auto" and num_gpus == 0 and gpus_per_worker == 0):
        return _with_gpus(config, 0.0), "cpu"
    if gpus_per_worker > 0:
        return config, "cuda"
    if num_gpus == 0:
        raise ConfigError(
            "device cuda was asked for, but torch sees no GPU; use --device cpu, or set evaluation.gpus_per_worker for a cluster"
        )
    # Ray counts GPUs in ten-thousandths; several workers share one where there are fewer GPUs than workers.
    return _with_gpus(config, min(1.0, int(10_000 * num_gpus / config.evaluation.num_workers) / 10_000)), "cuda"


def _with_gpus(config: RunConfig, gpus_per_worker: float) -> RunConfig:
    evaluation: EvaluationConfig = config.evaluation.model_copy(update={"gpus_per_worker": gpus_per_worker})
    return config.model_copy(update={"evaluation": evaluation})


def _with_precision(config: RunConfig, precision: Precision) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"precision": precision})})
