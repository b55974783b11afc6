"""A byte-reproducible WebDataset tar that hashes itself and each sample while it is written.

The same bytes as webdataset's TarWriter, whose import loads torch: two seconds and 200 MB for every worker.
"""

import hashlib
import tarfile
from collections.abc import Sequence
from typing import BinaryIO

from dgl_scale.data.samples import Sample, encode_members
from shard_tools.failures import Status
from shard_tools.ledger import Ledger, LedgerRow


class HashingTar:
    """A tar being written; `add` gives a ledger row, `ledger` the rows of the closed tar.

    Args:
        stream: empty, receives the tar.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self._size = 0

    def size_with(self, sample: Sample) -> int:
        """Bytes of the whole tar if `sample` were its last."""
        end = self._size + sum(_member_bytes(content) for _, content in encode_members(sample))
        return _up_to(end + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE)

    def add(self, sample: Sample) -> LedgerRow:
        """Append a sample."""
        blocks: list[bytes] = []
        for name, content in encode_members(sample):
            blocks += (_header(name, len(content)), content, bytes(-len(content) % tarfile.BLOCKSIZE))
        # One piece: a sample has hundreds of blocks, and each call would cost more than its bytes.
        content = b"".join(blocks)
        offset = self._size
        self._write(content)
        metadata = sample.metadata
        return LedgerRow(
            key=sample.key,
            video_id=metadata.video_id,
            status=Status.OK,
            offset=offset,
            size=len(content),
            n_frames=len(sample.frames),
            n_captions=len(metadata.captions),
            duration=metadata.duration,
            sha256=hashlib.sha256(content).hexdigest(),
        )

    def close(self) -> None:
        """Write the end of the tar."""
        self._write(bytes(_up_to(self._size + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE) - self._size))

    def ledger(self, rows: Sequence[LedgerRow]) -> Ledger:
        """The ledger of the closed tar.

        Args:
            rows: those that `add` gave, and those of failed samples, in order.
        """
        return Ledger(tuple(rows), self._size, self._sha256.hexdigest())

    def _write(self, content: bytes) -> None:
        self._sha256.update(content)
        self._stream.write(content)
        self._size += len(content)


def _header(name: str, size: int) -> bytes:
    header = tarfile.TarInfo(name)
    # Owner, mode and time are constants; anything else would make two builds differ.
    header.size, header.mode, header.mtime, header.uname, header.gname = size, 0o444, 0, "dgl", "dgl"
    return header.tobuf(tarfile.USTAR_FORMAT)


def _member_bytes(content: bytes) -> int:
    # Names are short enough for one header block (plan.py).
    return tarfile.BLOCKSIZE + _up_to(len(content), tarfile.BLOCKSIZE)


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
