"""Requests to stop: signals of schedulers and people, a time limit, a notice of preemption, the death of the launcher."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from types import FrameType

import psutil

from dgl_scale.errors import ExitCode
from dgl_scale.telemetry import say

_POLL_S = 1.0
# Words in the command lines of what starts ranks; a shell that a person types in has none of them.
_LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed", "slurmstepd", "mpirun", "orted", "prted", "pdsh", "sshd")


class StopReason(IntEnum):
    """Why a run is asked to stop; a number, so that ranks can agree on the largest."""

    NONE = 0
    SIGTERM = 1
    SIGUSR1 = 2
    SIGINT = 3
    LAUNCHER_GONE = 4
    TIME_LIMIT = 5
    PREEMPTION = 6

    @property
    def words(self) -> str:
        """For a message."""
        return _WORDS.get(self, self.name)


_WORDS = {
    StopReason.LAUNCHER_GONE: "the death of its launcher",
    StopReason.TIME_LIMIT: "its time limit (training.max_minutes)",
    StopReason.PREEMPTION: "a notice of preemption (training.preemption_file)",
}
_SIGNALS: dict[int, StopReason] = {signal.SIGTERM: StopReason.SIGTERM, signal.SIGUSR1: StopReason.SIGUSR1, signal.SIGINT: StopReason.SIGINT}


class StopRequest:
    """Notes SIGTERM, SIGUSR1, SIGINT, the end of the time limit, a notice file and a vanished launcher; the loop asks at each step.

    The handlers only set a flag: the step in progress ends, all ranks agree, a checkpoint is written. A second
    Ctrl-C interrupts at once.

    Args:
        max_minutes: of this process; None: no limit.
        preemption_file: a file whose appearance announces the end; None: none.
    """

    def __init__(self, max_minutes: float | None = None, preemption_file: str | None = None) -> None:
        self.reason = StopReason.NONE
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._notice = None if preemption_file is None else Path(preemption_file).expanduser()
        # A launcher that is killed orphans its ranks, which would then run on unseen.
        self._launchers = launcher_processes() if "RANK" in os.environ else []
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        if self._launchers or self._deadline is not None or self._notice is not None:
            threading.Thread(target=self._watch, daemon=True).start()

    def close(self) -> None:
        """Give the signals back to their former handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A block of the start, before there is anything to save: a signal, or the death of the launcher, ends the process with 75.

        A thread hears of them, since Python's own handlers wait for the end of a call into a library, which may last minutes.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno())
        thread = threading.Thread(target=self._end_at_once, args=(reader,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            writer.close()
            thread.join()
            reader.close()

    def _end_at_once(self, signals: socket.socket) -> None:
        signals.settimeout(_POLL_S)
        while True:
            reason = StopReason.NONE
            try:
                content = signals.recv(1)
                if not content:
                    return
                reason = _SIGNALS.get(content[0], reason)
            except TimeoutError:
                reason = StopReason.NONE if all(map(_is_alive, self._launchers)) else StopReason.LAUNCHER_GONE
            if reason != StopReason.NONE:
                say(f"stopped by {reason.words} before the first step; run the same command to go on")
                os._exit(ExitCode.INTERRUPTED)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason == StopReason.SIGINT:
            # Ctrl-C twice: do not wait for the step.
            raise KeyboardInterrupt
        self.reason = _SIGNALS[signal.Signals(number)]

    def _watch(self) -> None:
        pause = threading.Event()
        while self.reason == StopReason.NONE:
            pause.wait(_POLL_S)
            self.reason = max(self.reason, self._look())

    def _look(self) -> StopReason:
        if self._notice is not None and self._notice.exists():
            return StopReason.PREEMPTION
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return StopReason.TIME_LIMIT
        return StopReason.NONE if all(map(_is_alive, self._launchers)) else StopReason.LAUNCHER_GONE


def launcher_processes() -> list[psutil.Process]:
    """The processes that started this rank and must live as long as it: its parent, and above it whatever launches ranks.

    `deepspeed` starts a process a host, which starts the ranks: killing the first leaves the others running.
    """
    parents = psutil.Process().parents()
    return parents[:1] + parents[1 : 1 + count_launchers([_command_line(parent) for parent in parents[1:]])]


def count_launchers(command_lines: Sequence[str]) -> int:
    """How many of these command lines, parent before grandparent, are of launchers before the first that is not."""
    for number, line in enumerate(command_lines):
        if not any(word in line for word in _LAUNCHERS):
            return number
    return len(command_lines)


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return ""


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
