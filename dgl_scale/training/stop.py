"""Requests to stop: signals of schedulers and people, and the death of the launcher."""

import os
import signal
import threading
from types import FrameType

_POLL_S = 2.0


class StopRequest:
    """Notes SIGTERM, SIGUSR1, SIGINT and a vanished launcher; the loop asks at each step.

    The handlers only set a flag: the step in progress ends, all ranks agree, a checkpoint is written. A second
    Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        # A launcher that is killed orphans its ranks, which would then run on unseen.
        if "RANK" in os.environ and os.getppid() != 1:
            threading.Thread(target=self._watch_launcher, args=(os.getppid(),), daemon=True).start()

    def close(self) -> None:
        """Give the signals back to their former handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason == signal.SIGINT.name:
            # Ctrl-C twice: do not wait for the step.
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name

    def _watch_launcher(self, launcher: int) -> None:
        pause = threading.Event()
        while os.getppid() == launcher:
            pause.wait(_POLL_S)
        self.reason = "the launcher is gone"
