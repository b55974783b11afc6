"""What a build holds, in numbers and pictures: lengths, frames, captions, sizes, failures, per split.

    dgl-scale shards stats OUT [--report FOLDER]

Prints a table, and writes OUT/stats.json and OUT/stats.html. Reads the Parquet files and, of each
sample in the tars, its last kilobytes, where its captions are. OUT may be a URL.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dgl_scale.data.samples import SampleMetadata, decode_metadata
from dgl_scale.entry import Parser, run_command
from dgl_scale.errors import DataError, ExitCode
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import Location, is_url, join, public_url
from shard_tools.build_folder import SplitFolder, location_of, on_web, read_record, read_splits, report_folder, write_report
from shard_tools.failures import Status
from shard_tools.ledger import LedgerRow, read_ledger
from shard_tools.stats_report import render_report

_TAR_BLOCK = 512
_TAIL_BYTES = 16 * 1024
_READERS = 32
_READ_ATTEMPTS = 8

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


def collect(output: Location) -> dict[str, SplitStats]:
    """The statistics of each split of a build, by name.

    Raises:
        DataError: `output` is no finished build, or a shard is damaged.
        StorageError: the server cannot be reached or refuses.
    """
    storage = Storage()
    record = read_record(output, storage)
    return {split.name: _collect_split(split, storage) for split in read_splits(output, record, storage)}


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
    parser.add_argument("output", metavar="OUT", help="output folder of the build, or its URL")
    parser.add_argument("--report", metavar="FOLDER", help="where stats.json and stats.html go (default: OUT)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)

    def work() -> int:
        output, storage = location_of(arguments.output), Storage()
        folder = report_folder(output, arguments.report)
        splits = collect(output)
        summaries = {name: summarise(split) for name, split in splits.items()}
        numbers, page = join(folder, "stats.json"), join(folder, "stats.html")
        storage.write_json(numbers, summaries)
        title = str(read_record(output, storage)["dataset"])
        values = {name: split.values for name, split in splits.items()}
        write_report(page, render_report(title, summaries, values, QUANTITIES), storage)
        for name, summary in summaries.items():
            _print(name, summary)
        sys.stdout.write(f"drawn in {public_url(page)}, numbers in {public_url(numbers)}\n")
        return ExitCode.DONE

    return run_command(work, debug=arguments.debug)


def _collect_split(folder: SplitFolder, storage: Storage) -> SplitStats:
    split = SplitStats()
    for name in folder.shards:
        ledger = read_ledger(join(folder.folder, f"{name}.parquet"), storage)
        split.shards += 1
        split.statuses.update(ledger.statuses)
        rows = [row for row in ledger.rows if row.status is Status.OK]
        for row, metadata in zip(rows, _read_metadata(join(folder.folder, f"{name}.tar"), rows, storage), strict=True):
            split.values["duration"].append(metadata.duration)
            split.values["frames"].append(row.n_frames or 0)
            split.values["captions"].append(len(metadata.captions))
            split.values["words"] += [len(caption.split()) for caption in metadata.captions]
            split.values["bytes"].append(row.size or 0)
            split.sizes[f"{metadata.width} x {metadata.height}"] += 1
            split.decoders[row.decoder or "not recorded"] += 1
    return split


def _read_metadata(tar: Location, rows: Sequence[LedgerRow], storage: Storage) -> list[SampleMetadata]:
    """The last member of each sample, found from its end, because the frames before it are a thousand times as long."""
    found: dict[str, SampleMetadata] = {}
    missing, tail = list(rows), _TAIL_BYTES
    while missing:
        ranges = [((row.offset or 0) + (row.size or 0) - min(tail, row.size or 0), min(tail, row.size or 0)) for row in missing]
        for row, content in zip(missing, _read_ranges(tar, ranges, storage), strict=True):
            metadata = _last_member(row.key, content)
            if metadata is not None:
                found[row.key] = metadata
            elif tail >= (row.size or 0):
                raise DataError(f"sample {row.key} of {public_url(tar)} has no metadata; `dgl-scale shards verify` says more")
        missing = [row for row in missing if row.key not in found]
        tail *= 8
    return [found[row.key] for row in rows]


def _read_ranges(tar: Location, ranges: Sequence[tuple[int, int]], storage: Storage) -> list[bytes]:
    """The bytes of (offset, size) ranges of a tar."""
    if is_url(tar) and not on_web(tar):
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(lambda each: _read_surely(str(tar), each, storage), ranges))
    # Not every web server sends parts of files.
    try:
        with storage.local_copy(tar) as path, open(path, "rb") as stream:
            return [stream.read(size) for offset, size in ranges if stream.seek(offset) == offset]
    except OSError as error:
        raise DataError(f"shard {tar} cannot be read: {error.strerror or error}; build the shards again to restore it") from error


def _read_surely(url: str, place: tuple[int, int], storage: Storage) -> bytes:
    # There is no hash of a part of a sample; the same bytes twice are the proof.
    seen: set[bytes] = set()
    for _ in range(_READ_ATTEMPTS):
        content = bytes(storage.read_range(url, *place))
        if content in seen:
            return content
        seen.add(content)
    raise DataError(f"{public_url(url)} is sent with other bytes each time; look for damage on the network")


def _last_member(key: str, content: bytes) -> SampleMetadata | None:
    name = f"{key}.json\0".encode()
    for start in range(len(content) - _TAR_BLOCK, -1, -_TAR_BLOCK):
        if content.startswith(name, start):
            length = int(content[start + 124 : start + 135], 8)
            return decode_metadata(key, content[start + _TAR_BLOCK : start + _TAR_BLOCK + length])
    return None


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
