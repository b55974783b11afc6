"""Samples of a split, each one contiguous read of its shard, checked against its hash."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from dgl_scale.config import CacheConfig
from dgl_scale.data.cache import DiskCache
from dgl_scale.data.index import SplitIndex
from dgl_scale.data.location import Location, RemoteShard
from dgl_scale.data.samples import Sample, decode_tar_range
from dgl_scale.errors import DataError
from dgl_scale.storage.clients import NotThereError
from dgl_scale.storage.storage import Storage

_MAX_OPEN_SHARDS = 64
_MAX_FETCHES = 2  # a damaged copy is fetched anew, once

Note = Callable[[str], None]
"""Called with what is about to be done, again and again while it goes on."""


def _unheard(doing: str) -> None:
    del doing


class ShardFiles:
    """Reads samples by location; holds at most 64 local shards open, each opened when first needed.

    Survives a fork (reads carry their own offset, so inherited descriptors do no harm), and a pickled copy
    opens its own.

    Args:
        cache: where remote shards are kept; None: nowhere, each sample is fetched by itself.
        note: told which sample is read, or shard fetched.
    """

    def __init__(self, cache: CacheConfig | None = None, note: Note = _unheard) -> None:
        self._config = cache
        self._cache = DiskCache(cache) if cache else None
        self._note = note
        self._buffer = bytearray()
        self._open: OrderedDict[Path, int] = OrderedDict()  # file descriptors, least recently used first

    def read(self, location: Location) -> Sample:
        """The sample at a location; its frames are views that the next `read` overwrites.

        Raises:
            DataError: the shard cannot be read, or the bytes are not those that were written.
            StorageError: the server of a remote shard cannot be reached or refuses.
            DglError: the cache cannot be written.
        """
        key, shard = location.key, location.shard
        content = self._checked_content(location)
        if content is None:
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

    def _checked_content(self, location: Location) -> memoryview | None:
        """The sample's bytes; None if they are damaged."""
        shard = location.shard
        self._note(f"reading sample {location.key} of shard {shard}")
        try:
            if isinstance(shard, RemoteShard):
                return self._remote_content(location, shard)
            content = self._pread(self._descriptor(shard), location)
        except OSError as error:
            raise DataError(f"sample {location.key} of shard {shard} cannot be read: {error.strerror or error}") from error
        except NotThereError as error:
            raise DataError(f"sample {location.key} cannot be read: {error}") from None
        return content if _is_right(content, location) else None

    def _remote_content(self, location: Location, shard: RemoteShard) -> memoryview | None:
        for _ in range(_MAX_FETCHES):
            if self._cache is None:
                content = memoryview(Storage().read_range(shard.url, location.offset, location.size))
                if _is_right(content, location):
                    return content
                continue
            # Held no longer than it is read, so that the cache may evict it.
            name = f"{shard.sha256}.tar"
            descriptor = self._cache.open(name, shard.size, partial(self._fetch, shard))
            content = self._pread(descriptor, location)
            if _is_right(content, location):
                os.close(descriptor)
                return content
            self._cache.discard(name, descriptor)
        return None

    def _pread(self, descriptor: int, location: Location) -> memoryview:
        if len(self._buffer) < location.size:
            # A new one: views of the old one may still be about, and keep it from growing.
            self._buffer = bytearray(location.size)
        view = memoryview(self._buffer)[: location.size]
        return view[: os.preadv(descriptor, [view], location.offset)]

    def _fetch(self, shard: RemoteShard, stream: BinaryIO) -> None:
        def progress() -> None:
            self._note(f"fetching shard {shard}")

        progress()
        Storage().fetch(shard.url, stream, size=shard.size, sha256=shard.sha256, progress=progress)

    def _descriptor(self, shard: Path) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= _MAX_OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1])
        self._open[shard] = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[shard]

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardFiles, (self._config, self._note)

    def __del__(self) -> None:
        self.close()


class SampleReader:
    """The samples of a split by number."""

    def __init__(self, index: SplitIndex):
        self._index = index
        self._files = ShardFiles(index.cache)

    def read(self, i: int) -> Sample:
        """Sample `i` of the index.

        Raises:
            DataError: as `ShardFiles.read`.
        """
        sample = self._files.read(self._index.locate(i))
        return replace(sample, frames=[bytes(frame) for frame in sample.frames])

    def close(self) -> None:
        """Close all open shards; the reader stays usable."""
        self._files.close()


def _is_right(content: memoryview, location: Location) -> bool:
    return hashlib.sha256(content).digest() == location.sha256
