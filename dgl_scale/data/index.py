"""The index of a split: where each readable sample of its shards lies."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dgl_scale.config import CacheConfig
from dgl_scale.data.location import Location, Shard
from dgl_scale.data.split_files import IntArray, local_rows, local_shards, parquet_name, remote_rows, remote_shards
from dgl_scale.errors import DataError
from dgl_scale.files import json_sha256
from dgl_scale.storage import urls

_DEFAULT_CACHE = CacheConfig()


@dataclass(frozen=True, eq=False)
class SplitIndex:
    """The `ok` samples of a split, `V` of them, in shard order.

    Attributes:
        folder: the split's folder or address, fit to be shown.
        shards: the tar files, in the order of `index.json`.
        keys: text `[V]`.
        video_ids: text `[V]`.
        shard: int64 `[V]`, which of `shards` holds the sample.
        offset: int64 `[V]`, where the sample's bytes begin in its tar.
        size: int64 `[V]`, how many they are, headers included.
        num_frames: int64 `[V]`.
        num_captions: int64 `[V]`.
        sha256: uint8 `[V, 32]`, of those bytes.
        cache: where shards are kept if they are remote; None: nowhere.
        digest: SHA-256 of the shard list (names, sizes, hashes) and of what is excluded: equal digests, equal samples.
    """

    folder: str
    shards: tuple[Shard, ...]
    keys: npt.NDArray[np.object_]
    video_ids: npt.NDArray[np.object_]
    shard: IntArray
    offset: IntArray
    size: IntArray
    num_frames: IntArray
    num_captions: IntArray
    sha256: npt.NDArray[np.uint8]
    digest: str
    cache: CacheConfig | None

    @property
    def num_videos(self) -> int:
        """Readable videos, V."""
        return len(self.keys)

    @cached_property
    def total_captions(self) -> int:
        """Captions of all videos, the pairs of an epoch."""
        return int(self.num_captions.sum())

    def locate(self, i: int) -> Location:
        """Where sample `i` lies."""
        shard = self.shards[self.shard[i]]
        return Location(str(self.keys[i]), shard, int(self.offset[i]), int(self.size[i]), self.sha256[i].tobytes())


def load_split(folder: urls.Location, exclude: str | Path | None = None, cache: CacheConfig | None = _DEFAULT_CACHE) -> SplitIndex:
    """Read the index of a split: `index.json` and the Parquet file beside each shard.

    Args:
        folder: a local folder, or the address of a remote one (`s3://`, `gs://`, `http://`, `https://`).
        exclude: a text file of keys, one a line, whose samples are left out as if they were not there.
        cache: where shards of a remote split are kept; None: nowhere.

    Raises:
        DataError: no such folder, no `index.json`, a shard missing or of another size than listed (of a remote
            one this is found when it is read), a Parquet file missing or not as stated, or no readable
            sample at all; `exclude` cannot be read, or names a key that the split does not have.
        ConfigError: an address of an unknown kind.
        StorageError: the server cannot be reached or refuses.
    """
    shards: tuple[Shard, ...]
    if urls.is_url(folder):
        listed, shards = remote_shards(str(folder))
        digest = _digest(listed)
        rows = remote_rows(str(folder), listed, digest, cache)
    else:
        root = Path(folder).expanduser()
        listed, shards = local_shards(root)
        digest, cache = _digest(listed), None
        rows = local_rows(shards)
        folder = root
    index = SplitIndex(folder=urls.public_url(folder), shards=shards, digest=digest, cache=cache, **rows)
    _check_rows(index, listed)
    return index if exclude is None else _without(index, Path(exclude).expanduser())


def _without(index: SplitIndex, exclude: Path) -> SplitIndex:
    try:
        excluded = sorted({line.strip() for line in exclude.read_text(encoding="utf-8").splitlines()} - {""})
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.exclude {exclude} cannot be read as text: {getattr(error, 'strerror', None) or error}") from error
    unknown = sorted(set(excluded) - set(index.keys.tolist()))
    if unknown:
        raise DataError(
            f"data.exclude {exclude} names {len(unknown)} keys that {index.folder} does not have ({unknown[0]!r} first); "
            "was it written for other shards?"
        )
    keep = ~np.isin(index.keys.astype(str), excluded)
    if not keep.any():
        raise DataError(f"data.exclude {exclude} names every sample of {index.folder}; nothing is left to read")
    columns = ("keys", "video_ids", "shard", "offset", "size", "num_frames", "num_captions", "sha256")
    kept = {name: getattr(index, name)[keep] for name in columns}
    return replace(index, **kept, digest=json_sha256([index.digest, excluded]) if excluded else index.digest)


def _check_rows(index: SplitIndex, listed: list[dict[str, Any]]) -> None:
    if not index.num_videos:
        raise DataError(f"{index.folder} has no readable sample; check the shard build's report for why")
    counts = np.bincount(index.shard, minlength=len(listed))
    ends = index.offset + index.size
    filesizes = np.array([entry["filesize"] for entry in listed])
    outside = (index.offset < 0) | (index.size <= 0) | (ends > filesizes[index.shard])
    for number, entry in enumerate(listed):
        if counts[number] != entry["nsamples"]:
            raise DataError(
                f"{parquet_name(str(index.shards[number]))} has {counts[number]} samples, index.json says {entry['nsamples']}; "
                "build the shards again"
            )
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise DataError(f"sample {index.keys[first]} lies outside its shard {index.shards[index.shard[first]]}; build the shards again")


def _digest(listed: list[dict[str, Any]]) -> str:
    return json_sha256([[entry[name] for name in ("url", "nsamples", "filesize", "sha256")] for entry in listed])
