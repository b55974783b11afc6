"""A byte-reproducible WebDataset tar that hashes itself and each sample while it is written.

The same bytes as webdataset's TarWriter, whose import loads torch: two seconds and 200 MB for every worker.
"""

import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, BinaryIO

from dgl_scale.data.samples import Sample, encode_members
from shard_tools.failures import Status
from shard_tools.ledger import Ledger, LedgerRow


class _HashingStream:
    """Passes bytes on to a file, hashing all of them and the range of each sample."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream: BinaryIO | None = stream
        self._pending = bytearray()
        self._pending_start = 0
        self._ends: list[int] = []
        self._whole = hashlib.sha256()
        self.range_sha256: list[str] = []
        self.size = 0

    def write(self, content: bytes) -> int:
        if self._stream is None:
            return len(content)
        self._whole.update(content)
        self._pending += content
        self.size += len(content)
        self._settle()
        return self._stream.write(content)

    def end_range(self, offset: int) -> None:
        # The tar writer buffers: the bytes before `offset` may arrive later.
        self._ends.append(offset)
        self._settle()

    def discard(self) -> None:
        # tarfile writes its buffer when it is collected, also after a failure, when the file is closed.
        self._stream = None

    def sha256(self) -> str:
        return self._whole.hexdigest()

    def _settle(self) -> None:
        while self._ends and self.size >= self._ends[0]:
            length = self._ends.pop(0) - self._pending_start
            self.range_sha256.append(hashlib.sha256(self._pending[:length]).hexdigest())
            del self._pending[:length]
            self._pending_start += length


class HashingTar:
    """A tar being written; `add` gives a ledger row without its hash, `ledger` completes the rows after the end.

    Args:
        stream: empty, receives the tar.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = _HashingStream(stream)
        target: Any = self._stream
        self._tar = tarfile.open(fileobj=target, mode="w|", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def size_with(self, sample: Sample) -> int:
        """Bytes of the whole tar if `sample` were its last."""
        end = self._tar.offset + sum(_member_bytes(content) for _, content in encode_members(sample))
        return _up_to(end + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE)

    def add(self, sample: Sample) -> LedgerRow:
        """Append a sample."""
        offset = self._tar.offset
        for name, content in encode_members(sample):
            self._tar.addfile(_header(name, len(content)), io.BytesIO(content))
        end = self._tar.offset
        self._stream.end_range(end)
        metadata = sample.metadata
        return LedgerRow(
            key=sample.key,
            video_id=metadata.video_id,
            status=Status.OK,
            offset=offset,
            size=end - offset,
            n_frames=len(sample.frames),
            n_captions=len(metadata.captions),
            duration=metadata.duration,
        )

    def close(self) -> None:
        """Write the end of the tar."""
        self._tar.close()

    def discard(self) -> None:
        """Write nothing more, whatever the tar still holds back."""
        self._stream.discard()

    def ledger(self, rows: Sequence[LedgerRow]) -> Ledger:
        """The ledger of the closed tar.

        Args:
            rows: those that `add` gave, and those of failed samples, in order.
        """
        hashes = iter(self._stream.range_sha256)
        completed = tuple(replace(row, sha256=next(hashes)) if row.status is Status.OK else row for row in rows)
        return Ledger(completed, self._stream.size, self._stream.sha256())


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    # Owner, mode and time are constants; anything else would make two builds differ.
    header.size, header.mode, header.mtime, header.uname, header.gname = size, 0o444, 0, "dgl", "dgl"
    return header


def _member_bytes(content: bytes) -> int:
    # Names are short enough for one header block (plan.py).
    return tarfile.BLOCKSIZE + _up_to(len(content), tarfile.BLOCKSIZE)


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
