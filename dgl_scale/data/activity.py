"""What each reading process is doing, seen by the process that waits for it, in shared memory."""

import ctypes
import multiprocessing
import time
from typing import Any

from torch.utils.data import get_worker_info

_TEXT_BYTES = 480


class _Slot(ctypes.Structure):
    _fields_ = [("since", ctypes.c_double), ("text", ctypes.c_char * _TEXT_BYTES)]


class Activity:
    """A line for each reading process, and one for the process that owns them; passes to spawned processes."""

    def __init__(self, num_workers: int) -> None:
        # Typed as Any: a ctypes array of structures has no type that mypy knows.
        self._slots: Any = multiprocessing.get_context("spawn").RawArray(_Slot, num_workers + 1)

    def note(self, doing: str) -> None:
        """Say what this process does now, and that it is alive. A microsecond: fit to be called for every sample."""
        worker = get_worker_info()
        slot = self._slots[worker.id if worker else -1]
        slot.text = doing.encode()[: _TEXT_BYTES - 1]
        slot.since = time.monotonic()  # one clock for all processes of a machine

    def idle(self) -> None:
        """Say that this process waits for work."""
        self.note("")

    def last_sign_s(self) -> float:
        """When a process last noted something; of `time.monotonic`, 0 if none ever did."""
        return float(max(slot.since for slot in self._slots))

    def longest(self) -> str:
        """What the process that is busy for longest is doing; empty if none is."""
        busy = [slot for slot in self._slots if slot.text]
        return min(busy, key=lambda slot: slot.since).text.decode(errors="ignore") if busy else ""
