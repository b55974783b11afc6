"""Metrics of a run: a JSON line a record, the same in TensorBoard, and lines for people."""

import errno
import io
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from dgl_scale.files import write_text
from dgl_scale.trackers import start_tracker


class MetricsWriter:
    """Writes `metrics.jsonl` and `tensorboard/` of a run folder, and to trackers; the JSON lines are the record.

    On resume at `start_step` later records, left by a run that was killed after its last checkpoint,
    are dropped, so that every step occurs once. A disk that is full does not end a run: records wait in memory
    until there is room again.

    Args:
        trackers: names of `trackers.start_tracker`.
    """

    def __init__(self, run_folder: Path, start_step: int, trackers: Sequence[str] = ()) -> None:
        lines, events = run_folder / "metrics.jsonl", run_folder / "tensorboard"
        if lines.exists():
            _keep_until(lines, start_step)
        events.mkdir(exist_ok=True)
        self._lines = _PatientFile(lines)
        # Names must differ when a run is resumed within a second, and sort by time.
        self._events = _PatientFile(events / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}")
        self._events.append(_event_record(Event(wall_time=time.time(), file_version="brain.Event:2")))
        purge = Event(wall_time=time.time(), step=start_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._events.append(_event_record(purge))
        self._trackers = [start_tracker(name, run_folder) for name in trackers]

    def record(self, step: int, values: dict[str, float]) -> None:
        """Append the values of a step."""
        now = time.time()
        self._lines.append((json.dumps({"step": step, "time": round(now, 3), **values}) + "\n").encode())
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._events.append(_event_record(Event(wall_time=now, step=step, summary=summary)))
        for tracker in self._trackers:
            tracker.record(step, values)

    def close(self) -> None:
        """Flush to disk."""
        self._lines.close()
        self._events.close()
        for tracker in self._trackers:
            tracker.close()


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


class _PatientFile:
    """Appends whole records; those that the disk has no room for wait. TensorBoard's own writer dies of a full disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self._waiting: list[bytes] = []
        self._has_warned = False

    def append(self, record: bytes) -> None:
        self._waiting.append(record)
        size = os.fstat(self._stream.fileno()).st_size
        content = b"".join(self._waiting)
        try:
            if self._stream.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            # Half a record would spoil those behind it.
            self._stream.truncate(size)
            self._warn(error)
            return
        self._waiting.clear()

    def close(self) -> None:
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            self._warn(error)
        self._stream.close()

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            say(f"warning: cannot write {self._path}: {error.strerror or error}; training goes on, free some space")
        self._has_warned = True


def _event_record(event: Event) -> bytes:
    stream = io.BytesIO()
    RecordWriter(stream).write(event.SerializeToString())
    return stream.getvalue()


def _keep_until(path: Path, step: int) -> None:
    kept = [record for record in read_metrics(path.parent) if record["step"] <= step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
