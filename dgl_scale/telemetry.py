"""Metrics of a run: a JSON line a record, the same in TensorBoard, and lines for people."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from dgl_scale.files import write_text


class MetricsWriter:
    """Writes `metrics.jsonl` and `tensorboard/` of a run folder; the JSON lines are the record.

    On resume at `start_step` later records, left by a run that was killed after its last checkpoint,
    are dropped, so that every step occurs once.
    """

    def __init__(self, run_folder: Path, start_step: int) -> None:
        self._path = run_folder / "metrics.jsonl"
        if self._path.exists():
            _keep_until(self._path, start_step)
        self._stream = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._tensorboard = SummaryWriter(str(run_folder / "tensorboard"), purge_step=start_step + 1)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Append the values of a step."""
        line = {"step": step, "time": round(time.time(), 3), **values}
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush to disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self._tensorboard.close()


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
