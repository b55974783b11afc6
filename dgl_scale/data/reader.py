"""Samples of a split, each one contiguous read of its shard, checked against its hash."""

import hashlib
import os
from collections import OrderedDict
from pathlib import Path

from dgl_scale.data.index import Location, SplitIndex
from dgl_scale.data.samples import Sample, decode_tar_range
from dgl_scale.errors import DataError

_MAX_OPEN_SHARDS = 64


class ShardFiles:
    """Reads samples by location; holds at most 64 shards open, each opened when first needed.

    Survives a fork (reads carry their own offset, so inherited descriptors do no harm), and a pickled copy
    opens its own.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()  # file descriptors, least recently used first

    def read(self, location: Location) -> Sample:
        """The sample at a location.

        Raises:
            DataError: the shard cannot be read, or the bytes are not those that were written.
        """
        key, shard = location.key, location.shard
        try:
            content = os.pread(self._descriptor(shard), location.size, location.offset)
        except OSError as error:
            raise DataError(f"sample {key} of shard {shard} cannot be read: {error.strerror or error}") from error
        if hashlib.sha256(content).digest() != location.sha256:
            raise DataError(
                f"sample {key} of shard {shard} is damaged (its bytes differ from their sha256); remove the shard and build it again"
            )
        sample = decode_tar_range(content)
        if sample.key != key:
            raise DataError(f"shard {shard} holds sample {sample.key} where its index says {key}; build the shards again")
        return sample

    def close(self) -> None:
        """Close all open shards; they open again when needed."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, shard: Path) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= _MAX_OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1])
        self._open[shard] = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[shard]

    def __reduce__(self) -> tuple[type["ShardFiles"], tuple[()]]:
        return ShardFiles, ()

    def __del__(self) -> None:
        self.close()


class SampleReader:
    """The samples of a split by number."""

    def __init__(self, index: SplitIndex):
        self._index = index
        self._files = ShardFiles()

    def read(self, i: int) -> Sample:
        """Sample `i` of the index.

        Raises:
            DataError: as `ShardFiles.read`.
        """
        return self._files.read(self._index.locate(i))

    def close(self) -> None:
        """Close all open shards; the reader stays usable."""
        self._files.close()
