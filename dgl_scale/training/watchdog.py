"""Ends a run in which nothing moves any more, and says where each rank stood."""

import faulthandler
import os
import threading
import time
from pathlib import Path

from dgl_scale.errors import ExitCode
from dgl_scale.telemetry import say

# The launcher ends all ranks when one is gone; so each waits until the others, silent as long as itself, have written theirs.
_GRACE_S = 10.0


class HangWatchdog:
    """Writes the stacks of all threads and ends the process when `beat` was not called for `timeout_s`.

    Every rank has one. Collectives release the interpreter while they wait, so its thread runs.

    Args:
        folder: receives `rank-00000.txt` when it comes to that.
        timeout_s: longer than the longest step, validation or checkpoint.
    """

    def __init__(self, folder: Path, rank: int, timeout_s: float, *, grace_s: float = _GRACE_S) -> None:
        self._path = folder / f"rank-{rank:05d}.txt"
        self._rank = rank
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._doing = "starting"
        self._last = time.monotonic()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="hang watchdog", daemon=True).start()

    def beat(self, doing: str) -> None:
        """Something moved; `doing` names what begins now."""
        self._doing, self._last = doing, time.monotonic()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._timeout_s / 10)):
            if time.monotonic() - self._last > self._timeout_s:
                self._end()

    def _end(self) -> None:
        where = self._write_stacks()
        say(
            f"error: rank {self._rank} has been at '{self._doing}' for {self._timeout_s:.0f} s (training.hang_timeout_s) and ends; "
            f"stacks of all threads: {where}; run the same command to go on from the newest checkpoint"
        )
        self._closed.wait(self._grace_s)
        os._exit(ExitCode.FAILED)

    def _write_stacks(self) -> str:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "w", encoding="utf-8") as stream:
                faulthandler.dump_traceback(stream, all_threads=True)
        except OSError as error:
            faulthandler.dump_traceback(all_threads=True)
            return f"above ({self._path}: {error.strerror})"
        return str(self._path)
