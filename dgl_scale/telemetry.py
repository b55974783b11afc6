"""Metrics of a run: a JSON line a record, the same in TensorBoard, and lines for people."""

import errno
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from dgl_scale.files import write_text
from dgl_scale.trackers import start_tracker


class MetricsWriter:
    """Writes `metrics.jsonl` and `tensorboard/` of a run folder, and to trackers; the JSON lines are the record.

    On resume at `start_step` later records, left by a run that was killed after its last checkpoint,
    are dropped, so that every step occurs once. A disk that is full does not end a run: lines wait in memory
    until there is room again.

    Args:
        trackers: names of `trackers.start_tracker`.
    """

    def __init__(self, run_folder: Path, start_step: int, trackers: Sequence[str] = ()) -> None:
        self._path = run_folder / "metrics.jsonl"
        self._waiting: list[str] = []
        self._has_warned = False
        if self._path.exists():
            _keep_until(self._path, start_step)
        self._stream = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self._tensorboard = SummaryWriter(str(run_folder / "tensorboard"), purge_step=start_step + 1)
        self._trackers = [start_tracker(name, run_folder) for name in trackers]

    def record(self, step: int, values: dict[str, float]) -> None:
        """Append the values of a step."""
        self._waiting.append(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        self._flush()
        try:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        except OSError as error:
            self._warn("TensorBoard's file", error)
        for tracker in self._trackers:
            tracker.record(step, values)

    def close(self) -> None:
        """Flush to disk."""
        self._flush()
        try:
            os.fsync(self._stream.fileno())
            self._tensorboard.close()
        except OSError as error:
            self._warn("the metrics", error)
        self._stream.close()
        for tracker in self._trackers:
            tracker.close()

    def _flush(self) -> None:
        size = os.fstat(self._stream.fileno()).st_size
        try:
            content = "".join(self._waiting).encode()
            if self._stream.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            # Half a line would spoil the next one.
            self._stream.truncate(size)
            self._warn(str(self._path), error)
            return
        self._waiting.clear()

    def _warn(self, what: str, error: OSError) -> None:
        if not self._has_warned:
            say(f"warning: cannot write {what}: {error.strerror or error}; training goes on, free some space")
        self._has_warned = True


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """The records of a run folder, in order; a last line cut by a kill is left out."""
    path = run_folder / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def say(message: str) -> None:
    """One line of progress on stderr, where it mixes with no result."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def _keep_until(path: Path, step: int) -> None:
    kept = [record for record in read_metrics(path.parent) if record["step"] <= step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
