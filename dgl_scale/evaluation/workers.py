"""Ray actors that encode units. The door of Ray for evaluation.

A unit is a whole batch (`units`), so that features are bitwise the same for any number of workers. What a worker
that dies was doing is done again by another.
"""

import math
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dgl_scale.config import RunConfig
from dgl_scale.data.index import SplitIndex
from dgl_scale.data.reader import SampleReader
from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.errors import ConfigError, DglError
from dgl_scale.evaluation.embedding import build_model_of
from dgl_scale.evaluation.ranking_tasks import ByTasks
from dgl_scale.evaluation.splits import open_split
from dgl_scale.evaluation.units import EncodedUnit, ReadUnit, Unit, encode_unit, read_unit
from dgl_scale.model import DGL
from dgl_scale.model.precision import DTYPES
from dgl_scale.ray_cluster import ray_cluster
from dgl_scale.telemetry import say

_TASKS_PER_WORKER = 4
_MAX_UNITS_PER_TASK = 16
_MAX_DEATHS = 3

Task = tuple[Unit, ...]
Prompts = Mapping[str, Tensor]


@dataclass(frozen=True)
class WorkerJob:
    """What every worker needs to know from its start.

    Attributes:
        config: with a resolved precision.
        frozen: whether the CLIP has no prompts.
        device: `cpu` or `cuda`.
    """

    config: RunConfig
    frozen: bool
    device: str


def make_tasks(units: Sequence[Unit], num_workers: int) -> list[Task]:
    """Units in runs: about four a worker, so that none waits long at the end, and small enough that a death costs little."""
    size = max(1, min(_MAX_UNITS_PER_TASK, math.ceil(len(units) / (_TASKS_PER_WORKER * num_workers))))
    return [tuple(units[start : start + size]) for start in range(0, len(units), size)]


class Encoder:
    """The actor: a model, and threads that read ahead of it."""

    def __init__(self, job: WorkerJob) -> None:
        self._job = job
        self._prompts_digest: str | None = None
        self._splits: dict[str, SplitIndex] = {}
        self._local = threading.local()
        self._reading: dict[Unit, Future[ReadUnit]] = {}

    def load(self) -> None:
        """Build the model; apart from `__init__`, so that an error reaches the driver as what it is."""
        config = self._job.config
        # The order of float sums depends on the number of threads; the same for every worker.
        torch.set_num_threads(max(1, int(config.evaluation.cpus_per_worker)))
        self._device = torch.device(self._job.device)
        self._tokenizer = load_tokenizer(config.model.clip, config.data.max_words)
        self._model = build_model_of(config, frozen=self._job.frozen, device=self._device)
        # On a CPU more threads would only take cores from the model.
        self._num_readers = max(1, config.data.num_workers) if self._device.type == "cuda" else 1
        self._readers = ThreadPoolExecutor(self._num_readers, thread_name_prefix="reader")

    def encode(self, task: Task, upcoming: Task, prompts_digest: str | None, prompts: Sequence[Any]) -> list[EncodedUnit]:
        """Features of the units of a task.

        Args:
            upcoming: the task that will most likely be the next one here; its samples are read as soon as readers are free.
            prompts_digest: which prompts; None for the frozen CLIP.
            prompts: a reference to them, fetched only if they are not those of the last call.
        """
        if prompts_digest != self._prompts_digest:
            import ray

            assert isinstance(self._model, DGL), "only a frozen CLIP may be another model"
            self._model.load_prompts_state(ray.get(prompts[0]))
            self._prompts_digest = prompts_digest
        config = self._job.config
        dtype = DTYPES[config.training.precision]  # type: ignore[index]
        size = config.evaluation.batch_size
        return [
            encode_unit(self._model, self._tokenizer, read, batch_size=size, dtype=dtype, device=self._device)
            for read in self._read_ahead(task, upcoming)
        ]

    def _read_ahead(self, task: Task, upcoming: Task) -> Iterator[ReadUnit]:
        """The task's samples in order; while the model has one unit, the readers have the next ones."""
        units = [*task, *upcoming]
        # What was read ahead for a task that another worker got is worth nothing.
        self._reading = {unit: future for unit, future in self._reading.items() if unit in units}
        for place, unit in enumerate(task):
            for ahead in units[place : place + 1 + self._num_readers]:
                if ahead not in self._reading:
                    self._reading[ahead] = self._readers.submit(self._read, ahead, self._index(ahead.split))
            yield self._reading.pop(unit).result()

    def _read(self, unit: Unit, index: SplitIndex) -> ReadUnit:
        # A thread has readers of its own: they share file descriptors that one may close under another.
        readers = self._local.__dict__.setdefault("readers", {})
        if unit.split not in readers:
            readers[unit.split] = SampleReader(index)
        pin_memory = self._device.type == "cuda"
        num_frames = self._job.config.model.num_frames
        return read_unit(unit, index, readers[unit.split], self._model.image_size, num_frames, pin_memory=pin_memory)

    def _index(self, split: str) -> SplitIndex:
        if split not in self._splits:
            self._splits[split] = open_split(self._job.config, split)
        return self._splits[split]


class Workers:
    """`evaluation.num_workers` actors that live until `close`; `encode` may be called many times.

    Uses this process's connection to Ray, else the cluster at `RAY_ADDRESS`, else a private one that ends with them. Ray
    and the actors start with the first call. An actor that starts late, because its node joins late, gets work from
    then on.
    """

    def __init__(self, job: WorkerJob) -> None:
        self._job = job
        self._stack = ExitStack()
        self._pool: _Pool | None = None

    def close(self) -> None:
        """End the actors, and a private Ray."""
        self._stack.close()
        self._pool = None

    def encode(self, units: Sequence[Unit], prompts_digest: str | None, prompts: Prompts) -> Iterator[EncodedUnit]:
        """The units' features, in the order in which they come.

        Args:
            prompts_digest: names the prompts; None for the frozen CLIP.
            prompts: as of `DGL.prompts_state`.

        Raises:
            ConfigError: nobody answers at `RAY_ADDRESS`, or no node has the CPUs or GPUs that a worker asks for.
            DglError: a task killed three workers, no worker started, or whatever a worker raised.
        """
        if not units:
            return
        pool = self._pool or self._start()
        yield from pool.run(make_tasks(units, self._job.config.evaluation.num_workers), prompts_digest, prompts)

    def pairwise(self) -> ByTasks:
        """Rankings by as many tasks of Ray at a time as there are workers; see `ranking_tasks`.

        The actors end, since they hold the CPUs that the tasks need; the next `encode` starts new ones, and then this must be called again.

        Raises:
            ConfigError, DglError: as `encode`.
        """
        (self._pool or self._start()).free_resources()
        return ByTasks(self._job.config.evaluation)

    def _start(self) -> "_Pool":
        evaluation = self._job.config.evaluation
        self._stack.enter_context(ray_cluster(max(math.ceil(evaluation.num_workers * evaluation.cpus_per_worker), os.cpu_count() or 1)))
        import ray

        self._pool = _Pool(ray, self._job)
        self._stack.callback(self._pool.stop)
        return self._pool


@dataclass(eq=False)
class _Member:
    """An actor, and the task that it is reading ahead for."""

    actor: Any
    upcoming: Task = ()


class _Pool:
    """Hands tasks to actors; an actor gets its first one when it has loaded its model."""

    def __init__(self, ray: ModuleType, job: WorkerJob) -> None:
        self._ray = ray
        self._job = job
        self._idle: list[_Member] = []
        # Of each reference under way: whose it is, and its task or None while it loads.
        self._running: dict[Any, tuple[_Member, Task | None]] = {}
        # Of the reference of a loading: one that is ready when the actor has its place on a node.
        self._placed: dict[Any, Any] = {}
        self._deaths: dict[Task | None, int] = {}
        self._waiting: deque[Task] = deque()
        self._call: tuple[str | None, list[Any]] = (None, [])

    def run(self, tasks: Sequence[Task], prompts_digest: str | None, prompts: Prompts) -> Iterator[EncodedUnit]:
        """Everything that comes of the tasks."""
        _check_resources(self._ray, self._job.config)
        self._waiting = deque(tasks)
        self._deaths.clear()
        self._call = (prompts_digest, [self._ray.put(dict(prompts))] if prompts_digest else [])
        self._wake_idle()
        while len(self._running) < min(self._job.config.evaluation.num_workers - len(self._idle), len(tasks)):
            self._start_actor()
        try:
            while self._waiting or self._is_encoding():
                yield from self._receive_next()
        finally:
            if self._waiting or self._is_encoding():
                # Given up half-way: the next call must not meet what this one began.
                self.stop()

    def free_resources(self) -> None:
        """End all actors, so that others get their CPUs; ConfigError where no node has as many as a worker needs."""
        self.stop()
        _check_resources(self._ray, self._job.config)

    def stop(self) -> None:
        """End all actors."""
        for member in [*self._idle, *(member for member, _ in self._running.values())]:
            self._ray.kill(member.actor)
        for left in (self._idle, self._running, self._placed, self._waiting):
            left.clear()

    def _is_encoding(self) -> bool:
        return any(task for _, task in self._running.values())

    def _receive_next(self) -> Iterator[EncodedUnit]:
        timeout = None if self._is_encoding() else self._job.config.evaluation.start_timeout_s
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout)
        if not ready:
            placed, _ = self._ray.wait(list(self._placed.values()), timeout=0)
            raise DglError(_why_none_started(self._ray, self._job.config, is_placed=bool(placed)))
        for reference in ready:
            yield from self._receive(reference)

    def _start_actor(self) -> None:
        evaluation = self._job.config.evaluation
        actor = (
            self._ray.remote(Encoder)
            .options(num_cpus=evaluation.cpus_per_worker, num_gpus=evaluation.gpus_per_worker, max_restarts=0)
            .remote(self._job)
        )
        placed, loading = actor.__ray_ready__.remote(), actor.load.remote()
        self._running[loading], self._placed[loading] = (_Member(actor), None), placed

    def _give(self, member: _Member) -> None:
        task = member.upcoming or self._next_task()
        if not task:
            self._idle.append(member)
            return
        member.upcoming = self._waiting.popleft() if self._waiting else ()
        self._running[member.actor.encode.remote(task, member.upcoming, *self._call)] = (member, task)

    def _wake_idle(self) -> None:
        for member in [self._idle.pop() for _ in range(min(len(self._idle), len(self._waiting)))]:
            self._give(member)

    def _next_task(self) -> Task:
        """One that waits, else one that another actor has not begun; empty where there is none."""
        if self._waiting:
            return self._waiting.popleft()
        for member, _ in self._running.values():
            if member.upcoming:
                task, member.upcoming = member.upcoming, ()
                return task
        return ()

    def _receive(self, reference: Any) -> list[EncodedUnit]:
        member, task = self._running.pop(reference)
        self._placed.pop(reference, None)
        try:
            result: list[EncodedUnit] | None = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            if member.upcoming:
                self._waiting.appendleft(member.upcoming)
            self._replace(task, error)
            return []
        except self._ray.exceptions.RayTaskError as error:
            self._ray.kill(member.actor)
            cause = error.cause
            raise (
                cause if isinstance(cause, DglError) else DglError(f"an evaluation worker failed: {type(cause).__name__}: {cause}")
            ) from error
        # One that lives has loaded: earlier deaths were of their nodes, not of the model.
        self._deaths.pop(None, None)
        self._give(member)
        return result or []

    def _replace(self, task: Task | None, error: Exception) -> None:
        what = "while loading the model" if task is None else f"on videos {task[0].start} to {task[-1].stop - 1}"
        self._deaths[task] = self._deaths.get(task, 0) + 1
        if self._deaths[task] == _MAX_DEATHS:
            reason = str(error).strip().splitlines()[0]
            raise DglError(f"{_MAX_DEATHS} evaluation workers died {what}; is there enough memory? ({reason})")
        say(f"an evaluation worker died {what}; another does its work")
        if task is not None:
            self._waiting.appendleft(task)
        self._wake_idle()
        self._start_actor()


def _check_resources(ray: ModuleType, config: RunConfig) -> None:
    """Refuse at once what no node of this cluster can hold, unless it may grow."""
    if os.environ.get("RAY_ADDRESS"):
        # An autoscaled cluster begins small: `start_timeout_s` decides.
        if missing := _missing(ray, config):
            say(f"{missing}; waiting {config.evaluation.start_timeout_s:.0f} s for one that joins")
        return
    if missing := _missing(ray, config):
        raise ConfigError(missing)


def _missing(ray: ModuleType, config: RunConfig) -> str | None:
    """Which resource a worker needs that no node has; None if one node has all."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs = {"CPU": config.evaluation.cpus_per_worker, "GPU": config.evaluation.gpus_per_worker}
    if any(all(node.get(name, 0.0) >= needed for name, needed in needs.items()) for node in nodes):
        return None
    for name, needed in needs.items():
        largest = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if needed > largest:
            return (
                f"an evaluation worker needs {needed:g} {name}s and no node of the Ray cluster has more than {largest:g}; "
                f"lower evaluation.{name.lower()}s_per_worker or start a larger node"
            )
    return f"no node of the Ray cluster has both the {needs['CPU']:g} CPUs and the {needs['GPU']:g} GPUs that an evaluation worker needs"


def _why_none_started(ray: ModuleType, config: RunConfig, *, is_placed: bool) -> str:
    evaluation = config.evaluation
    timeout = f"no evaluation worker was ready within evaluation.start_timeout_s {evaluation.start_timeout_s:g} s"
    if is_placed:
        return f"{timeout}: one has its CPUs and GPUs and is still loading the model; raise the limit"
    if missing := _missing(ray, config):
        return f"{timeout}: {missing}"
    free = ray.available_resources()
    needs = {"CPUs": (evaluation.cpus_per_worker, free.get("CPU", 0.0)), "GPUs": (evaluation.gpus_per_worker, free.get("GPU", 0.0))}
    short = [f"{needed:g} {name} and {left:g} are free" for name, (needed, left) in needs.items() if needed > left]
    return f"{timeout}: each needs {' and '.join(short) or 'what no single node has free'}; wait for others' work, or add nodes"
