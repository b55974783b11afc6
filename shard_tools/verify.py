"""Read every shard of a build back and compare it with its ledger and lists. The door of webdataset.

    python -m shard_tools.verify OUT

Every byte of every tar is read twice: as the ranges that the Parquet gives, and through WebDataset's reader.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webdataset

from dgl_scale.data.samples import decode_members
from dgl_scale.entry import Parser, run_command
from dgl_scale.errors import DataError, DglError, ExitCode
from dgl_scale.files import file_sha256
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import Location, join, public_url
from shard_tools.build_folder import location_of, on_web, read_record, read_splits
from shard_tools.failures import Status, one_line
from shard_tools.ledger import Ledger, LedgerRow, read_ledger

_MAX_LINES = 20


@dataclass
class Verification:
    """What a build holds, and what is wrong with it, a line each."""

    num_shards: int = 0
    num_samples: int = 0
    num_failed: int = 0
    problems: tuple[str, ...] = ()


def verify(output: Location) -> Verification:
    """Check a finished build.

    Raises:
        DataError: `output` is no finished build.
        StorageError: the server cannot be reached or refuses.
    """
    storage = Storage()
    record = read_record(output, storage)
    result = Verification()
    problems: list[str] = []
    for split in read_splits(output, record, storage):
        listed = dict(split.listed)
        samples = 0
        for name in split.shards:
            ledger, found = _check_shard(split.folder, name, listed.pop(f"{name}.tar", None), storage)
            problems += [f"{split.name}/{problem}" for problem in found]
            samples += ledger.num_samples
            result.num_failed += len(ledger.rows) - ledger.num_samples
        problems += [f"{split.name}/index.json lists {url}, which the build does not have" for url in listed]
        there = () if on_web(output) else storage.names(split.folder)
        problems += [f"{split.name}/{name} belongs to no shard of the build" for name in _orphans(there, split.shards)]
        if samples != split.totals["samples"]:
            problems.append(f"{split.name} has {samples} samples, build.json says {split.totals['samples']}")
        result.num_shards += len(split.shards)
        result.num_samples += samples
    result.problems = tuple(problems)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns an exit code: 1 if anything is wrong."""
    parser = Parser(prog="verify", description="Read every shard of a build back and compare it with its Parquet.")
    parser.add_argument("output", metavar="OUT", help="output folder of the build, or its URL")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)

    def work() -> int:
        result = verify(location_of(arguments.output))
        for problem in result.problems[:_MAX_LINES]:
            sys.stderr.write(f"{problem}\n")
        if result.problems:
            raise DglError(f"{len(result.problems)} problems in {public_url(arguments.output)}; remove the damaged shards and build again")
        sys.stdout.write(f"{result.num_shards} shards, {result.num_samples} samples as written, {result.num_failed} failed rows\n")
        return ExitCode.DONE

    return run_command(work, debug=arguments.debug)


def _orphans(there: Sequence[str], names: Sequence[str]) -> list[str]:
    known = {f"{name}{suffix}" for name in names for suffix in (".tar", ".parquet")} | {"index.json", "sizes.json"}
    return [name for name in there if name not in known]


def _check_shard(folder: Location, name: str, entry: dict[str, Any] | None, storage: Storage) -> tuple[Ledger, list[str]]:
    tar = join(folder, f"{name}.tar")
    try:
        ledger = read_ledger(join(folder, f"{name}.parquet"), storage)
    except DataError as error:
        return Ledger(()), [f"{name}: {error}"]
    is_there = storage.size(tar) is not None
    if not ledger.num_samples:
        return ledger, [f"{name}.tar exists, its Parquet has no samples"] if is_there else []
    if not is_there:
        return ledger, [f"{name}.tar is missing"]
    with storage.local_copy(tar) as path:
        # Each check only where the one before found nothing: damage is reported once, as precisely as it can be.
        problems = list(_check_ranges(path, ledger)) or list(_check_whole(path, ledger, entry)) or _check_samples(path, ledger)
    return ledger, [f"{name}.tar{problem}" for problem in problems]


def _check_ranges(tar: Path, ledger: Ledger) -> Iterator[str]:
    end = 0
    with open(tar, "rb") as stream:
        for row in _good_rows(ledger):
            offset, size = row.offset or 0, row.size or 0
            if offset != end:
                yield f": sample {row.key} begins at byte {offset}, the one before ends at {end}"
            end = offset + size
            stream.seek(offset)
            if hashlib.sha256(stream.read(size)).hexdigest() != row.sha256:
                yield f": the bytes of sample {row.key} (from {offset}, {size} long) have changed"


def _check_whole(tar: Path, ledger: Ledger, entry: dict[str, Any] | None) -> Iterator[str]:
    if entry is None:
        yield " is not listed in index.json"
        return
    if entry["nsamples"] != ledger.num_samples:
        yield f": index.json says {entry['nsamples']} samples, its Parquet {ledger.num_samples}"
    size, sha256 = tar.stat().st_size, file_sha256(tar)
    for name, listed in (("index.json", (entry["filesize"], entry["sha256"])), ("its Parquet", (ledger.tar_bytes, ledger.tar_sha256))):
        if listed != (size, sha256):
            yield f" has {size} bytes and SHA-256 {sha256}, {name} says {listed[0]} and {listed[1]}"


def _check_samples(tar: Path, ledger: Ledger) -> list[str]:
    problems = []
    rows = _good_rows(ledger)
    position = 0
    try:
        for position, (key, members) in enumerate(read_tar(tar), start=1):
            row = rows[position - 1]
            sample = decode_members(members)
            found = (key, sample.metadata.video_id, len(sample.frames), len(sample.metadata.captions), sample.metadata.duration)
            if found != (row.key, row.video_id, row.n_frames, row.n_captions, row.duration):
                problems.append(f": sample {key} is not what its Parquet says: {found}")
    except Exception as error:
        return [*problems, f": sample {position + 1} cannot be read: {one_line(str(error))}"]
    if position != len(rows):
        problems.append(f" has {position} samples, its Parquet {len(rows)}")
    return problems


def read_tar(path: Path) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Key and tar members of each sample, as WebDataset's own reader sees them.

    Raises:
        Exception: whatever WebDataset raises for a damaged tar.
    """
    with open(path, "rb") as stream:
        files = webdataset.tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
        for sample in webdataset.tariterators.group_by_keys(files):
            key = sample["__key__"]
            yield key, [(f"{key}.{suffix}", content) for suffix, content in sample.items() if not suffix.startswith("__")]


def _good_rows(ledger: Ledger) -> list[LedgerRow]:
    return [row for row in ledger.rows if row.status is Status.OK]


if __name__ == "__main__":
    raise SystemExit(main())
