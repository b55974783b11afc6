"""Writes checkpoints off the training path, one at a time, and remembers what went wrong."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from dgl_scale.errors import DglError
from dgl_scale.telemetry import say

# A disk that is full now may have room at the next checkpoint; one that never has must not cost days.
_MAX_FAILURES = 3


class CheckpointWriter:
    """Runs one write after the other in a thread of its own. Used on rank 0 only.

    Args:
        in_background: false: `submit` returns when the checkpoint is written.
    """

    def __init__(self, *, in_background: bool) -> None:
        self._in_background = in_background
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._failures = 0
        self._last_failure: str | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Begin `write`, after the one before has ended. A failure is said, and the next write tried."""
        self._settle()
        self._pending = self._executor.submit(write)
        if not self._in_background:
            self._settle()

    def finish(self) -> str | None:
        """Wait until nothing is being written; returns why the last write failed, None if it did not."""
        if self._pending is not None:
            self._note(self._pending)
        return self._last_failure

    def fatal_failure(self) -> str | None:
        """Why the run must stop: several writes on end have failed. Does not wait."""
        if self._pending is not None and self._pending.done():
            self._settle()
        return self._last_failure if self._failures >= _MAX_FAILURES else None

    def close(self) -> None:
        """Finish what is being written and end the thread."""
        self._executor.shutdown(wait=True)

    def _settle(self) -> None:
        if self._pending is None:
            return
        self._note(self._pending)
        if 0 < self._failures < _MAX_FAILURES:
            say(f"warning: a checkpoint failed: {self._last_failure}; training goes on, the checkpoints before are whole")

    def _note(self, done: "Future[None]") -> None:
        self._pending = None
        try:
            done.result()
        except DglError as error:
            self._failures += 1
            self._last_failure = str(error)
            return
        self._failures, self._last_failure = 0, None
