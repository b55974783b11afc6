"""Evaluations from their config: encode with workers or take from the store, rank, write the results."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import torch

from dgl_scale.config import EvaluationConfig, RunConfig
from dgl_scale.data.location import dataset_name
from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.errors import CheckpointError, ConfigError, DataError, DglError
from dgl_scale.evaluation.attention_picture import attention_examples
from dgl_scale.evaluation.embedding import build_model_of
from dgl_scale.evaluation.encoding import EncodedSplit, Progress, SplitEncoder
from dgl_scale.evaluation.missing_videos import count_missing, pessimistic_metrics
from dgl_scale.evaluation.provenance import model_facts, package_versions, selection, training_facts
from dgl_scale.evaluation.query_bank import check_query_bank, query_bank_figures
from dgl_scale.evaluation.remote_checkpoint import remote_checkpoint
from dgl_scale.evaluation.results import RESULTS, Checkpoint, evaluation_folder, read_results, resolve_checkpoint, write_results
from dgl_scale.evaluation.retrieval import evaluate_features
from dgl_scale.evaluation.splits import absolute, build_facts, dataset_of, evaluated_split, open_split
from dgl_scale.files import LockedError, exclusive_lock, file_sha256
from dgl_scale.model import DGL, load_prompts
from dgl_scale.model.frozen_clip import EvaluatedModel
from dgl_scale.model.precision import Precision, fastest_precision
from dgl_scale.storage.urls import is_url, public_url


def evaluate_checkpoint(
    config: RunConfig, checkpoint_argument: str, device: str, *, command: list[str], progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """Evaluate what `--checkpoint` names on the config's split; arguments, result and errors as of `Evaluator`."""
    evaluated_split(config)
    is_remote = is_url(checkpoint_argument)
    opened = remote_checkpoint(checkpoint_argument) if is_remote else nullcontext(resolve_checkpoint(checkpoint_argument))
    with (
        opened as checkpoint,
        closing(Evaluator(config, device, frozen=checkpoint.prompts is None, command=command, progress=progress)) as evaluator,
    ):
        try:
            with evaluator.claim(checkpoint.name):
                return evaluator.evaluate(checkpoint)
        except LockedError as error:
            folder = evaluator.folder(checkpoint.name)
            raise DglError(f"another evaluation is writing to {folder}; wait for it, or choose another name or output") from error


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
        check_query_bank(config)
        self._split = evaluated_split(config)
        self._index = open_split(config, self._split)
        config, device = _place(config, device)
        if config.training.precision == "auto":
            config = _with_precision(config, fastest_precision(torch.device(device)))
        self._config = config
        self._command = command
        trained_on = None if config.data.train is None else dataset_of(absolute(config.data.train))
        evaluated = dataset_name(self._index.shards[0])
        self._other_dataset = evaluated if trained_on is not None and evaluated != trained_on else None
        self._tokenizer = load_tokenizer(config.model.clip, config.data.max_words)
        self._model: EvaluatedModel | None = None
        self._encoder = SplitEncoder(config, self._tokenizer, frozen=frozen, device=device, progress=progress)

    def close(self) -> None:
        """End the workers."""
        self._encoder.close()

    def folder(self, name: str) -> Path:
        """Where the results of a checkpoint of this name go; of another dataset than the run's, its name is in theirs."""
        split = self._config.evaluation.split
        run_folder = Path(self._config.output).expanduser() / self._config.name
        return evaluation_folder(run_folder, name, split if self._other_dataset is None else f"{split}-on-{self._other_dataset}")

    def claim(self, name: str) -> AbstractContextManager[None]:
        """A block in which nobody else writes these results; LockedError where somebody does."""
        folder = self.folder(name)
        return exclusive_lock(folder.with_name(f".{folder.name}.lock"))

    def has_results(self, name: str, prompts_sha256: str) -> bool:
        """Whether these prompts have been evaluated on these shards."""
        if not (self.folder(name) / RESULTS).exists():
            return False
        try:
            results = read_results(self.folder(name))
        except DataError:
            return False
        return self.is_of(results, prompts_sha256)

    def is_of(self, results: Mapping[str, Any], prompts_sha256: str) -> bool:
        """Whether the content of a results.json is of these prompts and this evaluator's shards."""
        return (results.get("prompts_sha256"), results.get("shards")) == (prompts_sha256, self._index.digest)

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
        pairwise = self._encoder.pairwise(len(features.text), len(features.keys))
        retrieval = evaluate_features(features, evaluation, twins=annotations.twins, seed=config.seed, pairwise=pairwise)
        if (bank := evaluation.qb_norm) is not None:
            retrieval.figures["rerank"]["qb_norm"] = query_bank_figures(self._encoder, model, config, bank, features)
        facts = build_facts(self._split, self._index.num_videos)
        if missing := count_missing(facts.get("coverage", {}), self._index.num_videos):
            facts["pessimistic"] = pessimistic_metrics(retrieval.ranking, missing)
        results = {
            **retrieval.figures,
            **facts,
            **model_facts(config, model, checkpoint),
            **training_facts(config, checkpoint, self._index),
            "checkpoint": checkpoint.address or str(checkpoint.prompts or checkpoint.name),
            "prompts_sha256": None if checkpoint.prompts is None else file_sha256(checkpoint.prompts),
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
        folder = self.folder(checkpoint.name)
        attention = []
        if isinstance(model, DGL):
            attention = attention_examples(model, self._index, self._tokenizer, config, features, retrieval.ranking.text_to_video)
        write_results(folder, results, retrieval, features, annotations, step=checkpoint.step, attention=attention)
        return folder, results

    def _load(self, checkpoint: Checkpoint) -> EvaluatedModel:
        """The model in this process, which checks the prompts before any worker starts. In fp32, which every CPU computes."""
        if self._model is None:
            config = _with_precision(self._config, "fp32")
            self._model = build_model_of(config, frozen=checkpoint.prompts is None, device=torch.device("cpu"))
        if checkpoint.prompts is not None:
            assert isinstance(self._model, DGL), "only a frozen CLIP may be another model"
            try:
                load_prompts(self._model, checkpoint.prompts)
            except CheckpointError as error:
                # The user knows the checkpoint, not the copy of it that is evaluated.
                shown = checkpoint.address or str(checkpoint.prompts)
                raise CheckpointError(str(error).replace(str(checkpoint.prompts), shown)) from error
        return self._model


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
