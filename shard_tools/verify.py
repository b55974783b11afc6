"""Read every shard of a build back and compare it with its ledger and lists.

    python -m shard_tools.verify OUT

Every byte of every tar is read twice: as the ranges that the Parquet gives, and through WebDataset's reader.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgl_scale.data.samples import decode_members
from dgl_scale.entry import Parser, run_command
from dgl_scale.errors import DataError, DglError, ExitCode
from dgl_scale.files import file_sha256, read_json
from shard_tools.failures import Status, one_line
from shard_tools.ledger import Ledger, LedgerRow, read_ledger
from shard_tools.writer import read_tar

_MAX_LINES = 20


@dataclass
class Verification:
    """What a build holds, and what is wrong with it, a line each."""

    num_shards: int = 0
    num_samples: int = 0
    num_failed: int = 0
    problems: tuple[str, ...] = ()


def verify(output: Path) -> Verification:
    """Check a finished build.

    Raises:
        DataError: `output` is no finished build.
    """
    record = read_json(output / "build.json")
    if record.get("status") == "building":
        raise DataError(f"{output} is not complete; run the build again to go on")
    result = Verification()
    problems: list[str] = []
    for split, totals in record["splits"].items():
        names = _shard_names(record["dataset"], split, totals["shards"])
        listed = {entry["url"]: entry for entry in read_json(output / split / "index.json")["shardlist"]}
        samples = 0
        for name in names:
            ledger, found = _check_shard(output / split / name, listed.pop(f"{name}.tar", None))
            problems += [f"{split}/{problem}" for problem in found]
            samples += ledger.num_samples
            result.num_failed += len(ledger.rows) - ledger.num_samples
        problems += [f"{split}/index.json lists {url}, which the build does not have" for url in listed]
        problems += [f"{split}/{name} belongs to no shard of the build" for name in _orphans(output / split, names)]
        if samples != totals["samples"]:
            problems.append(f"{split} has {samples} samples, build.json says {totals['samples']}")
        result.num_shards += len(names)
        result.num_samples += samples
    result.problems = tuple(problems)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns an exit code: 1 if anything is wrong."""
    parser = Parser(prog="verify", description="Read every shard of a build back and compare it with its Parquet.")
    parser.add_argument("output", metavar="OUT", help="output folder of the build")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)

    def work() -> int:
        result = verify(Path(arguments.output).expanduser())
        for problem in result.problems[:_MAX_LINES]:
            sys.stderr.write(f"{problem}\n")
        if result.problems:
            raise DglError(f"{len(result.problems)} problems in {arguments.output}; remove the damaged shards and build again")
        sys.stdout.write(f"{result.num_shards} shards, {result.num_samples} samples as written, {result.num_failed} failed rows\n")
        return ExitCode.DONE

    return run_command(work, debug=arguments.debug)


def _shard_names(dataset: str, split: str, count: int) -> list[str]:
    return [f"{dataset}-{split}-{number:06d}" for number in range(count)]


def _orphans(folder: Path, names: Sequence[str]) -> list[str]:
    known = {f"{name}{suffix}" for name in names for suffix in (".tar", ".parquet")} | {"index.json", "sizes.json"}
    return sorted(path.name for path in folder.iterdir() if path.name not in known)


def _check_shard(stem: Path, entry: dict[str, Any] | None) -> tuple[Ledger, list[str]]:
    tar_path = stem.with_name(f"{stem.name}.tar")
    try:
        ledger = read_ledger(tar_path.with_suffix(".parquet"))
    except DataError as error:
        return Ledger(()), [f"{stem.name}: {error}"]
    if not ledger.num_samples:
        return ledger, [f"{tar_path.name} exists, its Parquet has no samples"] if tar_path.exists() else []
    if not tar_path.is_file():
        return ledger, [f"{tar_path.name} is missing"]
    # Each check only where the one before found nothing: damage is reported once, as precisely as it can be.
    problems = list(_check_ranges(tar_path, ledger)) or list(_check_whole(tar_path, ledger, entry)) or _check_samples(tar_path, ledger)
    return ledger, problems


def _check_ranges(tar_path: Path, ledger: Ledger) -> Iterator[str]:
    end = 0
    with open(tar_path, "rb") as stream:
        for row in _good_rows(ledger):
            offset, size = row.offset or 0, row.size or 0
            if offset != end:
                yield f"{tar_path.name}: sample {row.key} begins at byte {offset}, the one before ends at {end}"
            end = offset + size
            stream.seek(offset)
            if hashlib.sha256(stream.read(size)).hexdigest() != row.sha256:
                yield f"{tar_path.name}: the bytes of sample {row.key} (from {offset}, {size} long) have changed"


def _check_whole(tar_path: Path, ledger: Ledger, entry: dict[str, Any] | None) -> Iterator[str]:
    if entry is None:
        yield f"{tar_path.name} is not listed in index.json"
        return
    if entry["nsamples"] != ledger.num_samples:
        yield f"{tar_path.name}: index.json says {entry['nsamples']} samples, its Parquet {ledger.num_samples}"
    size, sha256 = tar_path.stat().st_size, file_sha256(tar_path)
    for name, listed in (("index.json", (entry["filesize"], entry["sha256"])), ("its Parquet", (ledger.tar_bytes, ledger.tar_sha256))):
        if listed != (size, sha256):
            yield f"{tar_path.name} has {size} bytes and SHA-256 {sha256}, {name} says {listed[0]} and {listed[1]}"


def _check_samples(tar_path: Path, ledger: Ledger) -> list[str]:
    problems = []
    rows = _good_rows(ledger)
    position = 0
    try:
        for position, (key, members) in enumerate(read_tar(tar_path), start=1):
            row = rows[position - 1]
            sample = decode_members(members)
            found = (key, sample.metadata.video_id, len(sample.frames), len(sample.metadata.captions), sample.metadata.duration)
            if found != (row.key, row.video_id, row.n_frames, row.n_captions, row.duration):
                problems.append(f"{tar_path.name}: sample {key} is not what its Parquet says: {found}")
    except Exception as error:
        return [*problems, f"{tar_path.name}: sample {position + 1} cannot be read: {one_line(str(error))}"]
    if position != len(rows):
        problems.append(f"{tar_path.name} has {position} samples, its Parquet {len(rows)}")
    return problems


def _good_rows(ledger: Ledger) -> list[LedgerRow]:
    return [row for row in ledger.rows if row.status is Status.OK]


if __name__ == "__main__":
    raise SystemExit(main())
