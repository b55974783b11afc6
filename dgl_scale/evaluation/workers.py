"""Ray actors that encode slices of a split. The door of Ray for evaluation.

Slices start at multiples of the batch size, so that the batches, and with them the features, are bitwise the
same for any number of workers. The slice of a worker that dies is encoded again by a new one.
"""

import math
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dgl_scale.config import RunConfig
from dgl_scale.data.index import load_split
from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.errors import ConfigError, DglError
from dgl_scale.evaluation.embedding import encode_split, load_model
from dgl_scale.evaluation.features import Features, join_features
from dgl_scale.ray_cluster import ray_cluster
from dgl_scale.telemetry import say

_SLICES_PER_WORKER = 4
_MAX_DEATHS = 3
_START_TIMEOUT_S = 300.0

Progress = Callable[[int, int], None]
"""Called with (videos done, videos in all)."""


@dataclass(frozen=True)
class EncodingJob:
    """What every worker needs to know.

    Attributes:
        prompts: the prompts file, or None for the frozen CLIP.
        split_folder: shards to encode; must be the same path on every node, or a URL.
        device: `cpu` or `cuda`.
    """

    config: RunConfig
    prompts: Path | None
    split_folder: str
    device: str


def encode_with_workers(job: EncodingJob, num_videos: int, progress: Progress) -> Features:
    """Features of the whole split, encoded by `evaluation.num_workers` actors.

    Uses this process's connection to Ray, else the cluster at `RAY_ADDRESS`, else a private one that ends with this call.

    Raises:
        ConfigError: nobody answers at `RAY_ADDRESS`, or the cluster has not the CPUs or GPUs that a worker asks for.
        DglError: a slice killed three workers, no worker started, or whatever a worker raised.
    """
    evaluation = job.config.evaluation
    with ray_cluster(max(math.ceil(evaluation.num_workers * evaluation.cpus_per_worker), os.cpu_count() or 1)):
        import ray

        _check_resources(ray.cluster_resources(), evaluation.cpus_per_worker, evaluation.gpus_per_worker)
        pool = _Pool(ray, job, slices(num_videos, evaluation.batch_size, evaluation.num_workers), progress)
        try:
            return join_features(pool.run())
        finally:
            pool.stop()


def slices(num_videos: int, batch_size: int, num_workers: int) -> list[tuple[int, int]]:
    """Contiguous (start, stop) of whole batches that cover a split, about four a worker so that none waits long."""
    num_batches = math.ceil(num_videos / batch_size)
    size = batch_size * math.ceil(num_batches / (_SLICES_PER_WORKER * num_workers))
    return [(start, min(start + size, num_videos)) for start in range(0, num_videos, size)]


class Encoder:
    """The actor: a model, a split, and features of slices of it."""

    def __init__(self, job: EncodingJob, num_threads: int) -> None:
        self._job = job
        self._num_threads = num_threads

    def load(self) -> None:
        """Build the model; apart from `__init__`, so that an error reaches the driver as what it is."""
        # The order of float sums depends on the number of threads; the same for every worker.
        torch.set_num_threads(self._num_threads)
        config = self._job.config
        self._device = torch.device(self._job.device)
        self._index = load_split(self._job.split_folder, cache=config.data.cache)
        self._tokenizer = load_tokenizer(config.model.clip, config.data.max_words)
        self._model = load_model(config, self._job.prompts, self._device)

    def encode(self, start: int, stop: int) -> Features:
        """Features of videos `start` to `stop`."""
        return encode_split(self._model, self._index, self._tokenizer, start=start, stop=stop, config=self._job.config, device=self._device)


class _Pool:
    """Hands slices to actors; an actor gets its first one when it has loaded its model."""

    def __init__(self, ray: ModuleType, job: EncodingJob, work: list[tuple[int, int]], progress: Progress) -> None:
        self._ray = ray
        self._job = job
        self._waiting = deque(work)
        self._total = work[-1][1] if work else 0
        self._progress = progress
        self._deaths: dict[tuple[int, int] | None, int] = {}
        self._done: dict[tuple[int, int], Features] = {}
        # Of each reference under way: the actor, and its slice or None while it loads.
        self._running: dict[Any, tuple[Any, tuple[int, int] | None]] = {}

    def run(self) -> list[Features]:
        """All slices' features, in order."""
        for _ in range(min(self._job.config.evaluation.num_workers, len(self._waiting))):
            self._start_actor()
        while self._waiting or any(piece for _, piece in self._running.values()):
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=_START_TIMEOUT_S)
            if not ready and not any(piece for _, piece in self._running.values()):
                evaluation = self._job.config.evaluation
                raise DglError(
                    f"no evaluation worker started within {_START_TIMEOUT_S:.0f} s; each needs {evaluation.cpus_per_worker:g} CPUs and "
                    f"{evaluation.gpus_per_worker:g} GPUs, free now: {_resources(self._ray.available_resources())}"
                )
            for reference in ready:
                self._receive(reference)
        return [self._done[piece] for piece in sorted(self._done)]

    def stop(self) -> None:
        """End all actors."""
        for actor, _ in self._running.values():
            self._ray.kill(actor)
        self._running.clear()

    def _start_actor(self) -> None:
        evaluation = self._job.config.evaluation
        actor = (
            self._ray.remote(Encoder)
            .options(num_cpus=evaluation.cpus_per_worker, num_gpus=evaluation.gpus_per_worker, max_restarts=0)
            .remote(self._job, max(1, int(evaluation.cpus_per_worker)))
        )
        self._running[actor.load.remote()] = (actor, None)

    def _receive(self, reference: Any) -> None:
        actor, piece = self._running.pop(reference)
        try:
            result = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            self._replace(piece, error)
            return
        except self._ray.exceptions.RayTaskError as error:
            self._ray.kill(actor)
            cause = error.cause
            raise (
                cause if isinstance(cause, DglError) else DglError(f"an evaluation worker failed: {type(cause).__name__}: {cause}")
            ) from error
        if piece is not None:
            self._done[piece] = result
            self._progress(sum(stop - start for start, stop in self._done), self._total)
        if self._waiting:
            piece = self._waiting.popleft()
            self._running[actor.encode.remote(*piece)] = (actor, piece)
        else:
            self._ray.kill(actor)

    def _replace(self, piece: tuple[int, int] | None, error: Exception) -> None:
        what = "while loading the model" if piece is None else f"on videos {piece[0]} to {piece[1] - 1}"
        self._deaths[piece] = self._deaths.get(piece, 0) + 1
        if self._deaths[piece] == _MAX_DEATHS:
            reason = str(error).strip().splitlines()[0]
            raise DglError(f"{_MAX_DEATHS} evaluation workers died {what}; is there enough memory? ({reason})")
        say(f"an evaluation worker died {what}; a new one does its work")
        if piece is not None:
            self._waiting.appendleft(piece)
        self._start_actor()


def _check_resources(total: dict[str, float], cpus: float, gpus: float) -> None:
    for name, needed in (("CPU", cpus), ("GPU", gpus)):
        if needed > total.get(name, 0.0):
            raise ConfigError(
                f"an evaluation worker needs {needed:g} {name}s and the Ray cluster has {total.get(name, 0.0):g}; "
                f"lower evaluation.{name.lower()}s_per_worker or start more nodes"
            )


def _resources(amounts: dict[str, float]) -> str:
    return ", ".join(f"{amounts.get(name, 0.0):g} {name}s" for name in ("CPU", "GPU"))
