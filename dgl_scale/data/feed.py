"""Batches that reading processes, or a thread, decode ahead; one that does not come is an error and no hang."""

import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dgl_scale.batch import VideoTextBatch
from dgl_scale.data.activity import Activity
from dgl_scale.data.workers import end_workers, prepare_worker, start_workers
from dgl_scale.errors import DataError

Request = TypeVar("Request")
T = TypeVar("T")

_LONGEST_POLL_S = 30.0


@dataclass(frozen=True)
class Decoded:
    """What a reading process makes of a request for `B` videos.

    Errors travel as values: DataLoader would wrap an exception's one line in a worker's traceback.

    Attributes:
        frames: uint8 `[B, T, 3, H, W]`.
        keys: of the `B` videos.
        captions: the wanted ones of each video; empty where it cannot be read.
        errors: row to reason, for the videos that cannot be read; their frames are undefined.
        skipped: key to reason, of videos that were passed over.
        failure: why nothing can be read any more; None if all is well.
    """

    frames: Tensor
    keys: list[str]
    captions: list[list[str]]
    errors: dict[int, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failure: str | None = None

    def pin_memory(self) -> "Decoded":
        """The same in page-locked memory; called by DataLoader."""
        return replace(self, frames=self.frames.pin_memory())

    def to_batch(self, tokens: Tensor, video_index: Tensor, keys: list[str]) -> VideoTextBatch:
        """The batch of these frames; tokens in page-locked memory where the frames are."""
        return VideoTextBatch(self.frames, tokens.pin_memory() if self.frames.is_pinned() else tokens, video_index, tuple(keys))


class Feed(Generic[Request]):
    """Sends requests to a decoder that lives in `num_workers` processes, and hands back their batches in order.

    With no workers a thread of this process decodes, one request when it is asked for.

    Args:
        decoder: request to `Decoded`; picklable.
        activity: where the decoder notes what it does.
        prefetch: requests sent ahead to each worker.
        keep_workers: for the next requests; else they, or the thread, end with these.

    Attributes:
        stall_timeout_s: seconds without a batch and without a sign of life after which reading fails.
    """

    def __init__(
        self,
        decoder: "Dataset[Decoded]",
        activity: Activity,
        *,
        num_workers: int,
        prefetch: int,
        stall_timeout_s: float,
        keep_workers: bool,
    ) -> None:
        self.stall_timeout_s = stall_timeout_s
        self._keep_workers = keep_workers
        self._decoder = decoder
        self._activity = activity
        self._requests = _Requests[Request]()
        self._thread: _CallingThread | None = None
        self._workers: set[Any] = set()
        self._under_way: Iterator[Decoded] = iter(())
        self._waiting_since_s = 0.0
        self._loader = (
            DataLoader(
                decoder,
                batch_size=None,
                sampler=self._requests,
                num_workers=num_workers,
                multiprocessing_context="spawn",
                persistent_workers=keep_workers,
                worker_init_fn=prepare_worker,
                prefetch_factor=prefetch,
                timeout=min(stall_timeout_s / 4, _LONGEST_POLL_S),
                pin_memory=torch.cuda.is_available(),
                # Without a generator of its own it would draw from torch's global one, and a resumed run would differ.
                generator=torch.Generator(),
            )
            if num_workers
            else None
        )

    def batches(self, requests: Iterable[Request]) -> Iterator[Decoded]:
        """What the decoder makes of each request; one such iterator at a time, a new one ends the one before.

        Raises:
            DataError: the decoder reports a failure, or gives no sign of life for `stall_timeout_s`.
            DglError: a worker died.
        """
        try:
            for decoded in self._from_workers(requests) if self._loader is not None else self._from_thread(requests):
                if decoded.failure:
                    raise DataError(decoded.failure)
                yield decoded
        finally:
            if not self._keep_workers:
                self._end_thread()

    def call(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, done in a thread so that it too may stall.

        Raises:
            DataError: it gives no sign of life for `stall_timeout_s`.
        """
        self._thread = self._thread or _CallingThread()
        self._waiting_since_s = time.monotonic()
        # A thread that hangs is left behind; it ends with the process.
        return self._thread.call(work, min(self.stall_timeout_s / 4, _LONGEST_POLL_S), self._check_alive)

    def _end_thread(self) -> None:
        if self._thread is not None:
            self._thread.end()
        self._thread = None

    def _from_workers(self, requests: Iterable[Request]) -> Iterator[Decoded]:
        assert self._loader is not None
        self._requests.upcoming = requests
        self._waiting_since_s = time.monotonic()
        for _ in self._under_way:
            pass  # Workers that are still busy with what was asked before could not be started anew.
        before = set(multiprocessing.active_children())
        self._under_way = start_workers(self._loader, self._check_alive)
        self._workers |= set(multiprocessing.active_children()) - before
        while True:
            self._waiting_since_s = time.monotonic()
            try:
                decoded = next(self._under_way)
            except StopIteration:
                return
            yield decoded

    def _from_thread(self, requests: Iterable[Request]) -> Iterator[Decoded]:
        for request in requests:
            decoded = self.call(lambda request=request: self._decoder[request])  # type: ignore[misc]
            yield decoded.pin_memory() if torch.cuda.is_available() else decoded

    def _check_alive(self) -> None:
        quiet_s = time.monotonic() - max(self._waiting_since_s, self._activity.last_sign_s())
        if quiet_s < self.stall_timeout_s:
            return
        # At exit Python waits for its children, and one that hangs hears no polite signal.
        end_workers(self._workers)
        doing = self._activity.longest() or "no sign of life from the reading processes"
        raise DataError(f"reading stalled: {doing}, and nothing for {quiet_s:.0f} s (data.stall_timeout_s); check that source, then go on")


class _Requests(Sampler[Request]):
    """The requests to come; settable, because workers outlive one range of them. Setting others ends those before."""

    upcoming: Iterable[Request] = ()

    def __init__(self) -> None:
        pass

    def __iter__(self) -> Iterator[Request]:
        upcoming = self.upcoming
        for request in upcoming:
            if self.upcoming is not upcoming:
                return
            yield request


class _CallingThread:
    """Does one thing at a time; unlike those of an executor, nobody waits for it at exit."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="reading", daemon=True).start()

    def call(self, work: Callable[[], T], poll_s: float, on_silence: Callable[[], None]) -> T:
        self._work.put(work)
        while True:
            try:
                result, error = self._done.get(timeout=poll_s)
            except queue.Empty:
                on_silence()
                continue
            if error is not None:
                raise error
            done: T = result
            return done

    def end(self) -> None:
        """Leave when what is being done is done."""
        self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                self._done.put((work(), None))
            except BaseException as error:
                self._done.put((None, error))
