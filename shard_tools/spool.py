"""Rows on disk in buckets: what does not fit into memory, to be read back bucket by bucket.

One file without a name, so that not even a killed process leaves it behind. Rows are appended as compressed
Arrow batches; of each bucket only the places of its batches are in memory.
"""

from __future__ import annotations

import contextlib
from array import array
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import pyarrow

from dgl_scale.storage.scratch import scratch_error, scratch_file

_BATCH_ROWS = 128
_COMPRESSION = pyarrow.ipc.IpcWriteOptions(compression="zstd")


class Spool:
    """Rows in numbered buckets. Close it to give the disk space back.

    Args:
        schema: of the rows.
        folder: where the file lies; None: the system's temporary folder.

    Attributes:
        num_rows, num_bytes: written so far.
        rows_of: written of each bucket.
    """

    def __init__(self, schema: pyarrow.Schema, folder: str | None = None) -> None:
        self._file = scratch_file(folder)
        self._schema = schema
        self._rows: dict[Hashable, list[tuple[Any, ...]]] = {}
        # Offset, length, offset, length ... of each bucket's batches.
        self._extents: dict[Hashable, array[int]] = {}
        self.num_bytes = 0
        self.num_rows = 0
        self.rows_of: Counter[Hashable] = Counter()

    def append(self, bucket: Hashable, row: tuple[Any, ...]) -> None:
        """Add a row, its values in the order of the schema.

        Raises:
            DglError: the disk is full.
        """
        rows = self._rows.setdefault(bucket, [])
        rows.append(row)
        if len(rows) >= _BATCH_ROWS:
            self.write(bucket, self._rows.pop(bucket))

    def flush(self) -> None:
        """Write the rows that are still in memory.

        Raises:
            DglError: the disk is full.
        """
        for bucket, rows in self._rows.items():
            self.write(bucket, rows)
        self._rows = {}

    def read(self, bucket: Hashable) -> pyarrow.Table:
        """The rows of a bucket that were written, in the order in which they came."""
        return pyarrow.Table.from_batches(self.batches(bucket), self._schema)

    def batches(self, bucket: Hashable) -> Iterator[pyarrow.RecordBatch]:
        """The same rows, few at a time."""
        extents = self._extents.get(bucket, array("Q"))
        for place in range(0, len(extents), 2):
            self._file.seek(extents[place])
            with pyarrow.ipc.open_stream(self._file.read(extents[place + 1])) as reader:
                yield from reader

    def write(self, bucket: Hashable, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write rows at once.

        Raises:
            DglError: the disk is full.
        """
        columns = [pyarrow.array(values, field.type) for values, field in zip(zip(*rows, strict=True), self._schema, strict=True)]
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, self._schema, options=_COMPRESSION) as writer:
            writer.write_batch(pyarrow.record_batch(columns, schema=self._schema))
        content = sink.getvalue()
        try:
            self._file.seek(self.num_bytes)
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise scratch_error(error) from error
        self._extents.setdefault(bucket, array("Q")).extend((self.num_bytes, len(content)))
        self.num_bytes += len(content)
        self.num_rows += len(rows)
        self.rows_of[bucket] += len(rows)

    def close(self) -> None:
        """Give the disk space back."""
        # On a full disk closing fails, for what is still in the buffer; nobody wants that any more.
        with contextlib.suppress(OSError):
            self._file.close()
