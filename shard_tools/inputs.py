"""What a build reads: whether its places can be used, its annotations near by, and which video files they leave out."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from dgl_scale.errors import ConfigError, DataError
from dgl_scale.shards_config import ShardsConfig
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import SCHEMES, is_url, public_url, scheme_of
from shard_tools.annotations.videos import AnnotatedVideo
from shard_tools.spool import Spool

_WRITABLE = frozenset(["gs", "s3"])
_NUM_BUCKETS = 256


def check_places(config: ShardsConfig, storage: Storage) -> None:
    """Fail before any work where inputs or output cannot be used at all.

    Raises:
        ConfigError: a URL of a kind that is not read or written.
        StorageError: unknown bucket, wrong credentials, no server.
    """
    for name, allowed in (("annotations", SCHEMES), ("videos", SCHEMES), ("output", _WRITABLE)):
        location = getattr(config, name)
        if location and is_url(location) and scheme_of(location) not in allowed:
            kinds = ", ".join(f"{scheme}://" for scheme in sorted(allowed))
            raise ConfigError(f"{name}: {scheme_of(location)}:// cannot be used; give a path, or a URL of {kinds}")
    if config.format != "table" and is_url(config.videos):
        raise ConfigError(
            f"videos: format {config.format} needs a local folder, got {public_url(config.videos)}; describe remote videos by a table"
        )
    storage.check_readable(config.videos)
    storage.check_readable(config.output)


@contextlib.contextmanager
def local_annotations(config: ShardsConfig, storage: Storage) -> Iterator[ShardsConfig]:
    """The config with the annotation files that are remote fetched, for as long as the block runs.

    Raises:
        StorageError: they cannot be fetched.
    """
    with contextlib.ExitStack() as stack:
        fetched: dict[str, str] = {}

        def fetch(key: str, location: str) -> str:
            if not is_url(location):
                return location
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=config.storage.scratch, prefix="dgl-scale-"))
            # Under its own name: the suffix tells the format.
            path = Path(folder, Path(public_url(location)).name or key)
            path.symlink_to(stack.enter_context(storage.local_copy(location)))
            fetched[str(path)] = public_url(location)
            return str(path)

        section = config.dataset_section
        update: dict[str, Any] = {"annotations": config.annotations and fetch("annotations", config.annotations)}
        if section is not None:
            update[config.format] = section.with_files(fetch)
        try:
            yield config.model_copy(update=update)
        except DataError as error:
            message = str(error)
            for path, shown in fetched.items():
                message = message.replace(path, shown)
            raise DataError(message) from error


class UnannotatedFiles:
    """Counts the video files that no annotation names, by hashes on disk, as neither list need fit into memory.

    Args:
        scratch: folder for 8 bytes a path; None: the system's temporary folder.
    """

    def __init__(self, scratch: str | None) -> None:
        self._spool = Spool(pyarrow.schema([("path", pyarrow.int64())]), scratch)

    def watch(self, videos: Iterable[AnnotatedVideo]) -> Iterator[AnnotatedVideo]:
        """The same videos; their paths count as annotated."""
        for video in videos:
            self._append("annotated", video.path)
            yield video

    def count(self, files: Iterable[str]) -> int:
        """How many of `files`, paths relative to the videos folder, were not annotated."""
        for path in files:
            self._append("found", path)
        self._spool.flush()
        others = 0
        for bucket in range(_NUM_BUCKETS):
            annotated, found = (self._spool.read((kind, bucket))["path"].to_numpy() for kind in ("annotated", "found"))
            others += len(np.setdiff1d(found, annotated))
        self._spool.close()
        return others

    def _append(self, kind: str, path: str) -> None:
        digest = hashlib.blake2b(os.path.normpath(path).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self._spool.append((kind, digest[0]), (int.from_bytes(digest, signed=True),))
