"""Where the time of training steps goes, by phase."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepTimer:
    """Seconds by phase since the last `read`.

    On a GPU the phases are measured by events, which are read when asked for: nothing waits for the device in
    between. Phases that the host spends waiting (`on_host`) are measured by its clock everywhere.
    """

    def __init__(self, device: torch.device) -> None:
        self._use_events = device.type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def phase(self, name: str, *, on_host: bool = False) -> Iterator[None]:
        """Add the time of the block to `name`. Phases do not nest."""
        if self._use_events and not on_host:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
            return
        started = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - started

    def read(self) -> dict[str, float]:
        """Seconds by phase, then start anew. Waits for the device."""
        if self._events:
            torch.cuda.synchronize()
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) / 1000
        seconds = dict(self._seconds)
        self._seconds.clear()
        self._events.clear()
        return seconds
