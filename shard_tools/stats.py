"""What a build holds, in numbers and pictures: lengths, frames, captions, sizes, failures, per split.

    dgl-scale shards stats OUT

Prints a table, and writes OUT/stats.json and OUT/stats.html. Reads the Parquet files and, of each
sample in the tars, its last kilobytes, where its captions are.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dgl_scale.data.samples import SampleMetadata, decode_metadata
from dgl_scale.entry import Parser, run_command
from dgl_scale.errors import DataError, ExitCode
from dgl_scale.files import read_json, write_json, write_text
from shard_tools.failures import Status
from shard_tools.ledger import LedgerRow, read_ledger
from shard_tools.stats_report import render_report

_TAR_BLOCK = 512
_TAIL_BYTES = 16 * 1024

# Quantity to (what it is, unit).
QUANTITIES = {
    "duration": ("length of a video", "s"),
    "frames": ("stored frames of a video", ""),
    "captions": ("captions of a video", ""),
    "words": ("words of a caption", ""),
    "bytes": ("bytes of a sample", "B"),
}


@dataclass
class SplitStats:
    """One split.

    Attributes:
        values: a list of numbers for each of `QUANTITIES`.
        statuses: rows of each status, ok among them.
        sizes: samples of each "width x height".
        decoders: samples that each backend decoded.
    """

    shards: int = 0
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in QUANTITIES})
    statuses: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    decoders: Counter[str] = field(default_factory=Counter)


def collect(output: Path) -> dict[str, SplitStats]:
    """The statistics of each split of a build, by name.

    Raises:
        DataError: `output` is no finished build, or a shard is damaged.
    """
    record = read_json(output / "build.json")
    if not isinstance(record, dict) or "splits" not in record:
        raise DataError(f"{output} is no complete build; run the build again to go on")
    return {split: _collect_split(output / split) for split in sorted(record["splits"])}


def summarise(split: SplitStats) -> dict[str, Any]:
    """A split's numbers as JSON values: totals, and of each quantity mean, extremes and percentiles."""
    summary: dict[str, Any] = {
        "shards": split.shards,
        "samples": split.statuses[Status.OK.value],
        "failed": split.statuses.total() - split.statuses[Status.OK.value],
        "failures": {status: number for status, number in split.statuses.most_common() if status != Status.OK.value},
        "decoders": dict(split.decoders.most_common()),
        "sizes": dict(split.sizes.most_common(20)),
    }
    for name, values in split.values.items():
        if values:
            array = np.asarray(values)
            low, median, high = np.percentile(array, (5, 50, 95)).tolist()
            summary[name] = {
                "count": len(values),
                "total": round(float(array.sum()), 3),
                "mean": round(float(array.mean()), 3),
                "min": float(array.min()),
                "p5": low,
                "median": median,
                "p95": high,
                "max": float(array.max()),
            }
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns an exit code."""
    parser = Parser(prog="stats", description="Print and draw what a build holds; writes OUT/stats.json and OUT/stats.html.")
    parser.add_argument("output", metavar="OUT", help="output folder of the build")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)

    def work() -> int:
        output = Path(arguments.output).expanduser()
        splits = collect(output)
        summaries = {name: summarise(split) for name, split in splits.items()}
        write_json(output / "stats.json", summaries)
        title = str(read_json(output / "build.json").get("dataset", output.name))
        values = {name: split.values for name, split in splits.items()}
        write_text(output / "stats.html", render_report(title, summaries, values, QUANTITIES))
        for name, summary in summaries.items():
            _print(name, summary)
        sys.stdout.write(f"drawn in {output / 'stats.html'}, numbers in {output / 'stats.json'}\n")
        return ExitCode.DONE

    return run_command(work, debug=arguments.debug)


def _collect_split(folder: Path) -> SplitStats:
    split = SplitStats()
    for parquet in sorted(folder.glob("*.parquet")):
        ledger = read_ledger(parquet)
        split.shards += 1
        split.statuses.update(ledger.statuses)
        for row, metadata in _samples(parquet.with_suffix(".tar"), ledger.rows):
            split.values["duration"].append(metadata.duration)
            split.values["frames"].append(row.n_frames or 0)
            split.values["captions"].append(len(metadata.captions))
            split.values["words"] += [len(caption.split()) for caption in metadata.captions]
            split.values["bytes"].append(row.size or 0)
            split.sizes[f"{metadata.width} x {metadata.height}"] += 1
            split.decoders[row.decoder or "not recorded"] += 1
    return split


def _samples(tar: Path, rows: Sequence[LedgerRow]) -> Iterator[tuple[LedgerRow, SampleMetadata]]:
    good = [row for row in rows if row.status is Status.OK]
    if not good:
        return
    try:
        with open(tar, "rb") as stream:
            for row in good:
                yield row, _metadata(stream, row)
    except OSError as error:
        raise DataError(f"shard {tar} cannot be read: {error.strerror or error}; build the shards again to restore it") from error


def _metadata(stream: BinaryIO, row: LedgerRow) -> SampleMetadata:
    """The last member of a sample, found from its end, because the frames before it are a thousand times as long."""
    size, name = row.size or 0, f"{row.key}.json\0".encode()
    tail = min(_TAIL_BYTES, size)
    while True:
        stream.seek((row.offset or 0) + size - tail)
        content = stream.read(tail)
        for start in range(len(content) - _TAR_BLOCK, -1, -_TAR_BLOCK):
            if content.startswith(name, start):
                length = int(content[start + 124 : start + 135], 8)
                return decode_metadata(row.key, content[start + _TAR_BLOCK : start + _TAR_BLOCK + length])
        if tail == size:
            raise DataError(f"sample {row.key} of {stream.name} has no metadata; `dgl-scale shards verify` says more")
        tail = min(8 * tail, size)


def _print(name: str, summary: dict[str, Any]) -> None:
    write = sys.stdout.write
    write(f"{name}: {summary['samples']:,} samples in {summary['shards']:,} shards, {summary['failed']:,} failed\n")
    for status, number in summary["failures"].items():
        write(f"  {status:<26} {number:>12,}\n")
    present = [quantity for quantity in QUANTITIES if quantity in summary]
    if present:
        write(f"  {'':<26} {'mean':>12} {'min':>12} {'median':>12} {'p95':>12} {'max':>12}\n")
    for quantity in present:
        text, unit = QUANTITIES[quantity]
        numbers = [summary[quantity][column] for column in ("mean", "min", "median", "p95", "max")]
        write(f"  {f'{text} [{unit}]' if unit else text:<26} " + " ".join(f"{number:>12,.6g}" for number in numbers) + "\n")
    if summary["sizes"]:
        sizes = ", ".join(f"{size} ({number:,})" for size, number in list(summary["sizes"].items())[:3])
        write(f"  frames of {sizes}; decoded by {', '.join(f'{who} ({number:,})' for who, number in summary['decoders'].items())}\n")


if __name__ == "__main__":
    raise SystemExit(main())
