"""Where samples lie: shards, local and remote, and places in them."""

import re
from dataclasses import dataclass
from pathlib import Path

from dgl_scale.storage.urls import public_url

# As shard builds name their files: <dataset>-<split>-000000.tar.
_SHARD_NAME = re.compile(r"(?P<dataset>.+)-[A-Za-z0-9_]+-\d{6,}(-part\d+)?\.tar")


@dataclass(frozen=True)
class RemoteShard:
    """A shard that is no local file.

    Attributes:
        size: in bytes.
        sha256: of the file, in hexadecimal.
    """

    url: str
    size: int
    sha256: str

    def __str__(self) -> str:
        return public_url(self.url)


Shard = Path | RemoteShard


@dataclass(frozen=True)
class Location:
    """Where a sample lies: all that a process needs to read and check it.

    Attributes:
        offset, size: the sample's bytes in its shard, headers included.
        sha256: of those bytes, 32 of them.
    """

    key: str
    shard: Shard
    offset: int
    size: int
    sha256: bytes


def dataset_name(shard: Shard | str) -> str | None:
    """The dataset that a shard is of, by the name of its file; None where that does not tell."""
    found = _SHARD_NAME.fullmatch(str(shard).rpartition("/")[2])
    return found["dataset"] if found else None
