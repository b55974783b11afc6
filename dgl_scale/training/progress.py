"""What a run says of itself: metrics of a step, where its time went, and a line for people."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from dgl_scale import distributed
from dgl_scale.batch import VideoTextBatch
from dgl_scale.distributed import Reduction
from dgl_scale.errors import DglError
from dgl_scale.telemetry import MetricsWriter, say
from dgl_scale.training.step_timer import StepTimer

_PHASES = ("data", "forward", "communication", "backward", "optimizer")
_GIB = 1 << 30


@dataclass(frozen=True)
class RunSize:
    """What rates are computed from.

    Attributes:
        flops: model operations of a rank's share of a step, by the positions of its longest caption.
        peak_tflops: of a rank's device; None: no utilisation is recorded.
    """

    total_steps: int
    global_batch_size: int
    flops: Callable[[int], float]
    peak_tflops: float | None


class Progress:
    """Times the steps of this rank and logs those of all.

    Attributes:
        timer: the phases of a step.
    """

    def __init__(self, size: RunSize, start_step: int, device: torch.device, writer: MetricsWriter | None) -> None:
        self.timer = StepTimer(device)
        self._size = size
        self._device = device
        self._writer = writer
        self._last_step, self._last_time = start_step, time.perf_counter()
        self._paused_s: dict[str, float] = {}
        self._flops = 0.0

    def fetch(self, batches: Iterator[list[VideoTextBatch]]) -> tuple[list[VideoTextBatch], str | None]:
        """The next step's micro-batches, none at the end; and why they cannot be read, if so."""
        try:
            with self.timer.phase("data", on_host=True):
                micro_batches = next(batches, [])
        except DglError as error:
            return [], str(error)
        if micro_batches:
            self._flops += self._size.flops(max(longest_caption(batch) for batch in micro_batches))
        return micro_batches, None

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Leave the time of the block (a checkpoint, a validation) out of the steps', and record it under `name`."""
        begin = time.perf_counter()
        yield
        seconds = time.perf_counter() - begin
        self._last_time += seconds
        self._paused_s[name] = self._paused_s.get(name, 0.0) + seconds

    def log(self, step: int, values: dict[str, float], num_skipped: int) -> dict[str, float]:
        """Record a step and say it in one line. Collective.

        Args:
            values: loss, lr and the like, the same on all ranks.
            num_skipped: unreadable samples that this rank has met.

        Returns:
            all that was recorded.
        """
        own = self._measure(step)
        self._last_step, self._last_time = step, time.perf_counter()
        self._paused_s.clear()
        self._flops = 0.0
        recorded = {**values, **distributed.reduce_numbers({**own, "samples_skipped": (float(num_skipped), "sum")})}
        if self._writer is not None:
            self._writer.record(step, recorded)
            say(self._line(step, recorded))
        return recorded

    def _measure(self, step: int) -> dict[str, tuple[float, Reduction]]:
        steps = step - self._last_step
        phases = self.timer.read()
        step_s = (time.perf_counter() - self._last_time) / steps
        values: dict[str, tuple[float, Reduction]] = {"step_s": (step_s, "mean")}
        values |= {f"{name}_s": (phases.get(name, 0.0) / steps, "mean") for name in _PHASES}
        values["slowest_data_s"] = (phases.get("data", 0.0) / steps, "max")
        values |= {f"{name}_s": (self._paused_s.get(name, 0.0), "max") for name in ("checkpoint", "validation")}
        values["videos_per_s"] = (self._size.global_batch_size / step_s, "mean")
        rate = self._flops / steps / step_s / 1e12
        values["model_tflops_per_s"] = (rate, "mean")
        if self._size.peak_tflops is not None:
            values["mfu"] = (rate / self._size.peak_tflops, "mean")
        return {**values, **self._memory()}

    def _memory(self) -> dict[str, tuple[float, Reduction]]:
        values: dict[str, tuple[float, Reduction]] = {"memory_gib": (psutil.Process().memory_info().rss / _GIB, "max")}
        if self._device.type == "cuda":
            values["gpu_memory_gib"] = (torch.cuda.max_memory_allocated() / _GIB, "max")
            torch.cuda.reset_peak_memory_stats()
        return values

    def _line(self, step: int, values: dict[str, float]) -> str:
        total = self._size.total_steps
        times = ", ".join(f"{name} {values[f'{name}_s']:.2f}" for name in _PHASES)
        memory = values.get("gpu_memory_gib", values["memory_gib"])
        mfu = f"  MFU {100 * values['mfu']:.1f}%" if "mfu" in values else ""
        skipped = f"  {values['samples_skipped']:.0f} samples skipped" if values["samples_skipped"] else ""
        return (
            f"step {step}/{total}  loss {values['loss']:.3f}  in-batch R@1 {values['in_batch_R@1']:.1f}  lr {values['lr']:.2e}"
            f"  {values['step_s']:.2f} s/step ({times})  {values['videos_per_s']:.0f} videos/s{mfu}  {memory:.1f} GiB{skipped}"
            f"  {_minutes((total - step) * values['step_s'])} left"
        )


def longest_caption(batch: VideoTextBatch) -> int:
    """Positions of the batch's longest caption, start and end-of-text included (the largest id is end-of-text)."""
    return int(batch.tokens.argmax(dim=-1).max()) + 1


def sample_keys(micro_batches: Iterable[VideoTextBatch]) -> Sequence[str]:
    """The keys of a step's samples on this rank."""
    return [key for batch in micro_batches for key in batch.keys]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
