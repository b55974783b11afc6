"""Shards that an earlier build completed: whether they are what is planned, and the samples in them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Self

from dgl_scale.data.samples import Sample, decode_tar_range
from dgl_scale.errors import DataError
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import Location, join
from shard_tools.failures import Status
from shard_tools.ledger import Ledger, LedgerRow, read_ledger
from shard_tools.plan import Plan, ShardPlan

_READERS = 16


@dataclass(frozen=True)
class ShardSummary:
    """What a finished tar with its ledger adds to lists and totals.

    Attributes:
        statuses: number of rows of each status.
        bytes, sha256: of the tar; 0 and None where no sample is ok, so that there is no tar.
        is_part: it continues a shard that grew over `max_shard_bytes`.
        mended: ids of the videos that failed in an earlier build and not in this one.
    """

    name: str
    split: str
    statuses: dict[str, int]
    bytes: int
    sha256: str | None
    is_part: bool = False
    mended: tuple[str, ...] = ()

    @property
    def num_samples(self) -> int:
        """Samples in the tar."""
        return self.statuses.get(Status.OK.value, 0)

    @property
    def num_failed(self) -> int:
        """Rows without a sample."""
        return sum(self.statuses.values()) - self.num_samples


def part_name(shard: str, part: int) -> str:
    """File name, without suffix, of a shard's tar and ledger: of the first, and of those in which it goes on."""
    return f"{shard}-part{part}" if part else shard


def finished_shard(plan: ShardPlan, output: Location, storage: Storage | None = None) -> list[ShardSummary] | None:
    """The summaries of a shard that an earlier build completed; None if it must be built.

    Looks at the ledgers and at the tars' sizes; `verify` looks at every byte.

    Raises:
        StorageError: the server cannot be reached or refuses.
    """
    ledgers = finished_ledgers(plan, output, storage or Storage())
    if ledgers is None:
        return None
    return summarize(plan, ledgers)


def find_finished(plan: Plan, output: Location, storage: Storage) -> list[list[ShardSummary] | None]:
    """`finished_shard` of every shard of a plan; folders are listed once, and ledgers read side by side.

    Raises:
        StorageError: the server cannot be reached or refuses.
    """
    there = {name for split in plan.splits for name in storage.names(join(output, split)) if name.endswith(".parquet")}
    found: list[list[ShardSummary] | None] = [None] * len(plan)
    candidates = [i for i, name in enumerate(plan.names()) if f"{name}.parquet" in there]
    with ThreadPoolExecutor(_READERS) as pool:
        # Few at a time: a plan is as large as the samples of its shard.
        for start in range(0, len(candidates), 4 * _READERS):
            numbers = candidates[start : start + 4 * _READERS]
            plans = [plan[i] for i in numbers]
            for i, summaries in zip(numbers, pool.map(lambda shard: finished_shard(shard, output, storage), plans), strict=True):
                found[i] = summaries
    return found


def finished_ledgers(plan: ShardPlan, output: Location, storage: Storage) -> list[Ledger] | None:
    """The ledgers of all parts of a finished shard; None if it must be built."""
    keys = [planned.key for planned in plan.samples]
    ledgers: list[Ledger] = []
    while keys or not ledgers:
        stem = part_name(plan.name, len(ledgers))
        try:
            ledger = read_ledger(join(output, plan.split, f"{stem}.parquet"), storage)
        except DataError:
            return None
        found = [row.key for row in ledger.rows]
        if not found or found != keys[: len(found)]:
            return None
        if ledger.num_samples and storage.size(join(output, plan.split, f"{stem}.tar")) != ledger.tar_bytes:
            return None
        ledgers.append(ledger)
        del keys[: len(found)]
    return ledgers


def summarize(plan: ShardPlan, ledgers: Sequence[Ledger]) -> list[ShardSummary]:
    """What the ledgers of a shard's parts add to lists and totals."""
    return [
        ShardSummary(
            name=part_name(plan.name, part),
            split=plan.split,
            statuses=dict(sorted(ledger.statuses.items())),
            bytes=ledger.tar_bytes,
            sha256=ledger.tar_sha256,
            is_part=part > 0,
        )
        for part, ledger in enumerate(ledgers)
    ]


class EarlierSamples:
    """The good samples of a finished shard, held open, so that the shard can be written anew over itself.

    Use as a context manager.

    Attributes:
        outcomes: key, status and error of every row, in order; none if the shard is not finished.
        failed: keys of the rows without a sample.
        summaries: of the shard as it is.
    """

    def __init__(self, plan: ShardPlan, output: Location, storage: Storage) -> None:
        self._plan = plan
        self._folder = join(output, plan.split)
        self._storage = storage
        self._ledgers = finished_ledgers(plan, output, storage) or []
        rows = [row for ledger in self._ledgers for row in ledger.rows]
        self.outcomes = [(row.key, row.status, row.error) for row in rows]
        self.failed = {row.key for row in rows if row.status is not Status.OK}
        self.summaries = summarize(plan, self._ledgers)
        self._places: dict[str, tuple[BinaryIO, LedgerRow]] = {}
        self._files = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for part, ledger in enumerate(self._ledgers):
                if ledger.num_samples:
                    tar = join(self._folder, f"{part_name(self._plan.name, part)}.tar")
                    # Open files stay readable when others take their names.
                    stream = stack.enter_context(open(stack.enter_context(self._storage.local_copy(tar)), "rb"))
                    self._places.update({row.key: (stream, row) for row in ledger.rows if row.status is Status.OK})
            self._files = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def read(self, key: str) -> tuple[Sample, str | None] | None:
        """The sample as it was written and the backend that decoded it; None if it failed then, or has been damaged since."""
        if key not in self._places:
            return None
        stream, row = self._places[key]
        stream.seek(row.offset or 0)
        content = stream.read(row.size or 0)
        return (decode_tar_range(content), row.decoder) if hashlib.sha256(content).hexdigest() == row.sha256 else None
