"""The index of a split: where each readable sample of its shards lies. The door of pyarrow for reading."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dgl_scale.errors import DataError
from dgl_scale.files import json_sha256, path_inside, read_json

IntArray = npt.NDArray[np.int64]

_COLUMNS = ("key", "video_id", "offset", "size", "n_frames", "n_captions", "sha256")


@dataclass(frozen=True)
class Location:
    """Where a sample lies: all that a process needs to read and check it.

    Attributes:
        offset, size: the sample's bytes in its shard, headers included.
        sha256: of those bytes, 32 of them.
    """

    key: str
    shard: Path
    offset: int
    size: int
    sha256: bytes


@dataclass(frozen=True, eq=False)
class SplitIndex:
    """The `ok` samples of a split, `V` of them, in shard order.

    Attributes:
        folder: the split's folder.
        shards: paths of the tar files, in the order of `index.json`.
        keys, video_ids: text `[V]`.
        shard: int64 `[V]`, which of `shards` holds the sample.
        offset, size: int64 `[V]`, the sample's bytes in its tar, headers included.
        num_frames, num_captions: int64 `[V]`.
        sha256: uint8 `[V, 32]`, of those bytes.
        digest: SHA-256 of the shard list (names, sizes, hashes) and of what is excluded: equal digests, equal samples.
    """

    folder: Path
    shards: tuple[Path, ...]
    keys: npt.NDArray[np.object_]
    video_ids: npt.NDArray[np.object_]
    shard: IntArray
    offset: IntArray
    size: IntArray
    num_frames: IntArray
    num_captions: IntArray
    sha256: npt.NDArray[np.uint8]
    digest: str

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


def load_split(folder: str | Path, exclude: str | Path | None = None) -> SplitIndex:
    """Read the index of a split: `index.json` and the Parquet file beside each shard.

    Args:
        exclude: a text file of keys, one a line, whose samples are left out as if they were not there.

    Raises:
        DataError: no such folder, no `index.json`, a shard missing or of another size than listed, a
            Parquet file missing or not as stated, or no readable sample at all; `exclude` cannot be
            read, or names a key that the split does not have.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"no folder of shards {root}; build it, or set the path of the split")
    if not (root / "index.json").is_file():
        raise DataError(f"{root} has no index.json, so it is no finished split; build the shards again to complete it")
    listed = _shard_list(root)
    shards = tuple(_checked_shard(root, entry) for entry in listed)
    rows = _read_rows(shards)
    index = SplitIndex(folder=root, shards=shards, digest=_digest(listed), **rows)
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


def _shard_list(root: Path) -> list[dict[str, Any]]:
    content = read_json(root / "index.json")
    listed = content.get("shardlist") if isinstance(content, dict) else None
    wanted = {"url": str, "nsamples": int, "filesize": int, "sha256": str}
    if not isinstance(listed, list) or not all(
        isinstance(entry, dict) and all(isinstance(entry.get(name), kind) for name, kind in wanted.items()) for entry in listed
    ):
        raise DataError(
            f"{root / 'index.json'} is no shard list: each entry of 'shardlist' needs {', '.join(wanted)}; build the shards again"
        )
    if not listed:
        raise DataError(f"{root / 'index.json'} lists no shards; check the shard build's report for why")
    return listed


def _checked_shard(root: Path, entry: dict[str, Any]) -> Path:
    path = path_inside(root, entry["url"])
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"shard {entry['url']} of {root} cannot be read ({error.strerror}); build the shards again to restore it"
        ) from error
    if size != entry["filesize"]:
        raise DataError(f"shard {path} has {size} bytes instead of {entry['filesize']}; remove it and build the shards again")
    return path


def _read_rows(shards: tuple[Path, ...]) -> dict[str, Any]:
    # Imported here so that reading processes, which never see an index, start without pyarrow.
    import pyarrow
    import pyarrow.dataset

    files = [shard.with_suffix(".parquet") for shard in shards]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing}, the index of its shard, is missing; build the shards again to restore it")
    try:
        dataset = pyarrow.dataset.dataset([str(file) for file in files], format="parquet")
        columns = [*_COLUMNS, "__fragment_index"]
        table = dataset.scanner(columns=columns, filter=pyarrow.dataset.field("status") == "ok").to_table()
        return _to_arrays(table)
    except (pyarrow.ArrowException, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"the Parquet files of {shards[0].parent} are not as expected ({reason}); build the shards again") from error


def _to_arrays(table: Any) -> dict[str, Any]:
    for name in _COLUMNS:
        if table[name].null_count:
            raise ValueError(f"column {name} has no value in {table[name].null_count} rows")

    def column(name: str, dtype: type) -> Any:
        return np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=dtype)

    digests = bytes.fromhex("".join(table["sha256"].to_pylist()))
    return {
        "keys": column("key", object),
        "video_ids": column("video_id", object),
        "shard": column("__fragment_index", np.int64),
        "offset": column("offset", np.int64),
        "size": column("size", np.int64),
        "num_frames": column("n_frames", np.int64),
        "num_captions": column("n_captions", np.int64),
        "sha256": np.frombuffer(digests, dtype=np.uint8).reshape(table.num_rows, 32),
    }


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
                f"{index.shards[number].with_suffix('.parquet')} has {counts[number]} samples, index.json says {entry['nsamples']}; "
                "build the shards again"
            )
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise DataError(f"sample {index.keys[first]} lies outside its shard {index.shards[index.shard[first]]}; build the shards again")


def _digest(listed: list[dict[str, Any]]) -> str:
    return json_sha256([[entry[name] for name in ("url", "nsamples", "filesize", "sha256")] for entry in listed])
