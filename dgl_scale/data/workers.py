"""Reading processes that live as long as their run, and no longer.

They are spawned: a fork of a process with CUDA, DeepSpeed or thread pools may deadlock, and a forkserver is one more
process to outlive a killed run. A spawned worker is ready after importing torch (about 1.5 s), once a run.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from dgl_scale.errors import DglError

T = TypeVar("T")

_PATIENCE_S = 5.0
_JOIN_S = 0.2
# What terminals, launchers and schedulers send to every process of a run; its own process answers for the workers.
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def start_workers(batches: "DataLoader[T]", on_silence: Callable[[], None]) -> Iterator[T]:
    """Iterate over a loader whose workers are deaf to forwarded signals from their first instruction on.

    A worker hit by Ctrl-C would print a traceback; one hit by a scheduler's SIGTERM would break the step that the
    run still wants to finish. Signals of this process wait only while the workers start.

    Args:
        on_silence: called while no batch comes, whenever the loader's `timeout` has passed; may raise.

    Raises:
        DglError: a worker died, most often for want of memory; now or while iterating.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    try:
        # multiprocessing's own helper needs this too: it survives SIGINT and SIGTERM, but SIGUSR1 would end it. Its
        # start unblocks the two, hence once more.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        with _death_explained():
            return _until_death(iter(batches), on_silence)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def end_workers(workers: Iterable[Any]) -> None:
    """Kill these processes, also such as hang or are stopped, and wait for them for a while."""
    waiting, deadline = list(workers), time.monotonic() + _PATIENCE_S
    with _unanswered_deaths():
        for worker in waiting:
            worker.kill()
        while waiting and time.monotonic() < deadline:
            for worker in waiting:
                worker.join(_JOIN_S)
            waiting = [worker for worker in waiting if worker.is_alive()]


@contextmanager
def _unanswered_deaths() -> Iterator[None]:
    """DataLoader answers the death of its workers with a RuntimeError wherever the main thread is at that moment.

    Where that is between the end of a wait for one of them and the note that it has ended, it counts as alive for ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        if previous is not None:
            signal.signal(signal.SIGCHLD, previous)


def _until_death(batches: Iterator[T], on_silence: Callable[[], None]) -> Iterator[T]:
    while True:
        with _death_explained():
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader timed out" not in str(error):
                    raise
                on_silence()
                continue
        yield batch


def death_of_worker(error: RuntimeError) -> DglError | None:
    """What to say where `error` tells of a reading process's death; DataLoader raises it wherever this process is then."""
    if "DataLoader worker" not in str(error):
        return None
    reason = str(error).splitlines()[0].rstrip(". ")
    return DglError(f"a reading process died ({reason}); if memory or /dev/shm is short, lower data.num_workers or the batch")


@contextmanager
def _death_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if death := death_of_worker(error):
            raise death from error
        raise


def prepare_worker(worker: int) -> None:
    """Stay deaf to forwarded signals; end when the parent says so or is gone."""
    del worker
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    for duty in (_obey_parent, _follow_parent):
        threading.Thread(target=duty, name=duty.__name__, daemon=True).start()


def _obey_parent() -> None:
    # At exit, multiprocessing ends its children with SIGTERM and waits for them.
    while signal.sigwaitinfo((signal.SIGTERM,)).si_pid != os.getppid():
        pass
    os._exit(0)


def _follow_parent() -> None:
    # DataLoader's own watchdog never notices a parent that was killed before the worker had started.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)
