"""The Parquet beside each shard: a row per planned sample. Its presence says that the shard is complete."""

from collections import Counter
from dataclasses import asdict, dataclass, fields

import pyarrow
import pyarrow.parquet

from dgl_scale.errors import DataError
from dgl_scale.storage.clients import NotThereError
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import Location, public_url
from shard_tools.failures import Status

_SCHEMA = pyarrow.schema(
    [
        pyarrow.field("key", pyarrow.string(), nullable=False),
        pyarrow.field("video_id", pyarrow.string(), nullable=False),
        pyarrow.field("status", pyarrow.string(), nullable=False),
        pyarrow.field("error", pyarrow.string()),
        pyarrow.field("offset", pyarrow.int64()),
        pyarrow.field("size", pyarrow.int64()),
        pyarrow.field("n_frames", pyarrow.int32()),
        pyarrow.field("n_captions", pyarrow.int32()),
        pyarrow.field("duration", pyarrow.float64()),
        pyarrow.field("sha256", pyarrow.string()),
        pyarrow.field("decoder", pyarrow.string()),
    ]
)


@dataclass(frozen=True)
class LedgerRow:
    """A planned sample and what became of it.

    Attributes:
        error: why it failed, one line; None if `status` is ok.
        offset, size: the sample's bytes in the tar, headers included; None if it failed.
        duration: of the stored segment, in seconds.
        sha256: of the bytes `offset` to `offset + size`.
        decoder: which backend decoded it, `decord` or `pyav`.
    """

    key: str
    video_id: str
    status: Status
    error: str | None = None
    offset: int | None = None
    size: int | None = None
    n_frames: int | None = None
    n_captions: int | None = None
    duration: float | None = None
    sha256: str | None = None
    decoder: str | None = None


@dataclass(frozen=True)
class Ledger:
    """The rows of a shard, and size and hash of its tar (0 and None where no sample is ok, so that there is no tar)."""

    rows: tuple[LedgerRow, ...]
    tar_bytes: int = 0
    tar_sha256: str | None = None

    @property
    def statuses(self) -> Counter[str]:
        """How many rows have each status."""
        return Counter(row.status.value for row in self.rows)

    @property
    def num_samples(self) -> int:
        """Rows that have a sample in the tar."""
        return self.statuses[Status.OK.value]


def write_ledger(location: Location, ledger: Ledger, storage: Storage | None = None) -> None:
    """Write a ledger as Parquet, whole or not at all; the same ledger gives the same bytes.

    Raises:
        DglError: the place cannot be written or the disk is full.
    """
    table = pyarrow.Table.from_pylist([asdict(row) for row in ledger.rows], _SCHEMA)
    tar = {"tar_bytes": str(ledger.tar_bytes), "tar_sha256": ledger.tar_sha256 or ""}
    with (storage or Storage()).output_file(location) as stream:
        pyarrow.parquet.write_table(table.replace_schema_metadata(tar), stream)


def read_ledger(location: Location, storage: Storage | None = None) -> Ledger:
    """Read what `write_ledger` wrote.

    Raises:
        DataError: missing, damaged, or not a ledger.
        StorageError: the server cannot be reached or refuses.
    """
    try:
        with (storage or Storage()).local_copy(location) as path:
            table = pyarrow.parquet.read_table(path, partitioning=None)
        tar = table.schema.metadata
        # Builds of before a column came have none; a column that must be there is missed by LedgerRow.
        table = table.select([field.name for field in fields(LedgerRow) if field.name in table.column_names])
        rows = tuple(LedgerRow(**{**row, "status": Status(row["status"])}) for row in table.to_pylist())
        return Ledger(rows, int(tar[b"tar_bytes"]), tar[b"tar_sha256"].decode() or None)
    except (OSError, pyarrow.lib.ArrowException, KeyError, TypeError, ValueError, NotThereError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{public_url(location)} is no ledger of a shard: {reason}; remove it and build again") from error
