"""How long a plan takes, how much memory and disk: `dgl-scale bench plan --rows 10000000`.

Writes a synthetic table, plans its shards as a build does, reads some of them back, and scans the ledgers of a
split as one Parquet dataset. Prints a line a figure, or JSON.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet

from dgl_scale.entry import Parser, run_command
from dgl_scale.errors import ExitCode
from dgl_scale.shards_config import ColumnsConfig
from shard_tools.annotations.table import table_rows
from shard_tools.failures import Status
from shard_tools.inputs import UnannotatedFiles
from shard_tools.ledger import Ledger, LedgerRow, write_ledger
from shard_tools.plan import plan_shards

_BLOCK_ROWS = 100_000
_SAMPLES_PER_SHARD = 1000
_READ_SHARDS = 100
_LEDGERS = 200


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns an exit code."""
    parser = Parser(prog="bench plan", description="Time, memory and disk of planning shards, on a synthetic table.")
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="videos (default: %(default)s)")
    parser.add_argument("--scratch", metavar="FOLDER", help="for the table and the plan (default: the temporary folder)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    arguments = parser.parse_args(argv)

    def work() -> int:
        figures = measure(arguments.rows, arguments.scratch)
        for name, value in figures.items():
            sys.stdout.write(f"{name:<24} {value:,.1f}\n" if isinstance(value, float) else f"{name:<24} {value:,}\n")
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")
        return ExitCode.DONE

    return run_command(work, debug=False)


def measure(rows: int, scratch: str | None = None) -> dict[str, int | float]:
    """The figures of a plan of `rows` videos, by name; memory is the whole process's peak."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        table = folder / "table.parquet"
        _write_table(table, rows)
        before = _peak_mib()
        begin = time.monotonic()
        columns = ColumnsConfig(video_id="video_id", split="split")
        videos = UnannotatedFiles(scratch).watch(table_rows(table, columns, "train"))
        plan = plan_shards(videos, "bench", _SAMPLES_PER_SHARD, 0, None, scratch)
        seconds = time.monotonic() - begin
        peak = _peak_mib()
        numbers = range(0, len(plan), max(1, len(plan) // _READ_SHARDS))
        begin = time.monotonic()
        samples = sum(len(plan[number].samples) for number in numbers)
        reading = time.monotonic() - begin
        plan.close()
        return {
            "rows": rows,
            "table_mib": table.stat().st_size / 2**20,
            "plan_s": seconds,
            "rows_per_s": rows / seconds,
            "shards": len(plan),
            "scratch_mib": plan.scratch_bytes / 2**20,
            "peak_mib_before_plan": before,
            "peak_mib": peak,
            "shard_read_ms": 1000 * reading / len(numbers),
            "sample_read_us": 1e6 * reading / samples,
            **_scan(folder / "split", min(_LEDGERS, len(plan))),
        }


def _write_table(path: Path, rows: int) -> None:
    schema = pyarrow.schema([(name, pyarrow.string()) for name in ("video_id", "path", "captions", "split")])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, _BLOCK_ROWS):
            numbers = range(start, min(start + _BLOCK_ROWS, rows))
            columns: list[list[Any]] = [
                [f"video{number:09d}" for number in numbers],
                [f"part{number % 1000:03d}/video{number:09d}.mp4" for number in numbers],
                [f"somebody shows item {number} to the camera and explains how it works" for number in numbers],
                ["test" if number % 100 == 0 else "train" for number in numbers],
            ]
            writer.write_table(pyarrow.table(columns, schema=schema))


def _scan(folder: Path, count: int) -> dict[str, int | float]:
    rows = tuple(
        LedgerRow(f"video{i:09d}", f"video{i:09d}", Status.OK, None, i, 9, 30, 1, 9.5, f"{i:064x}") for i in range(_SAMPLES_PER_SHARD)
    )
    for number in range(count):
        write_ledger(folder / f"bench-train-{number:06d}.parquet", Ledger(rows, 1, "0" * 64))
    begin = time.monotonic()
    table = pyarrow.dataset.dataset(folder, format="parquet").to_table(columns=["status", "duration"])
    good = pyarrow.compute.sum(pyarrow.compute.equal(table["status"], "ok")).as_py()
    seconds = time.monotonic() - begin
    return {"ledgers_scanned": count, "ledger_rows": good, "scan_s": seconds, "scan_ledgers_per_s": count / seconds}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    raise SystemExit(main())
