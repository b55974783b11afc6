"""The files of a split beside its tars: `index.json` and a Parquet a shard, local or remote. The door of pyarrow for reading."""

import io
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dgl_scale.config import CacheConfig
from dgl_scale.data.cache import DiskCache
from dgl_scale.data.location import RemoteShard
from dgl_scale.errors import ConfigError, DataError
from dgl_scale.files import path_inside, read_json
from dgl_scale.storage.clients import NotThereError
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import SCHEMES, public_url, scheme_of, url_inside

IntArray = npt.NDArray[np.int64]
ShardList = list[dict[str, Any]]
"""Entries of `index.json`: `url`, `nsamples`, `filesize`, `sha256`."""

_COLUMNS = ("key", "video_id", "offset", "size", "n_frames", "n_captions", "sha256")
_SHARD = "shard"
_FETCHED_AT_ONCE = 16
_SHA256 = re.compile("[0-9a-f]{64}")


def local_shards(root: Path) -> tuple[ShardList, tuple[Path, ...]]:
    """What `index.json` lists, and the path of each shard; they are there and as large as listed.

    Raises:
        DataError: otherwise, or there is no folder or no list.
    """
    if not root.is_dir():
        raise DataError(f"no folder of shards {root}; build it, or set the path of the split")
    if not (root / "index.json").is_file():
        raise DataError(f"{root} has no index.json, so it is no finished split; build the shards again to complete it")
    listed = _check_list(read_json(root / "index.json"), str(root / "index.json"))
    return listed, tuple(_checked_shard(root, entry) for entry in listed)


def remote_shards(url: str) -> tuple[ShardList, tuple[RemoteShard, ...]]:
    """What `index.json` of a remote split lists; the shards themselves are not asked for.

    Raises:
        ConfigError: an address of an unknown kind.
        DataError: there is no list.
        StorageError: the server cannot be reached or refuses.
    """
    if scheme_of(url) not in SCHEMES:
        raise ConfigError(f"split {public_url(url)}: {scheme_of(url)}:// is not supported; use a local folder, s3://, gs:// or https://")
    place = url_inside(url, "index.json")
    try:
        content = Storage().read_json(place)
    except NotThereError:
        raise DataError(
            f"{public_url(url)} has no index.json, so it is no finished split; correct the address, or build the shards again"
        ) from None
    listed = _check_list(content, public_url(place))
    return listed, tuple(RemoteShard(url_inside(url, entry["url"]), entry["filesize"], entry["sha256"]) for entry in listed)


def local_rows(shards: tuple[Path, ...]) -> dict[str, Any]:
    """The arrays of a `SplitIndex`, from the Parquet files beside local shards.

    Raises:
        DataError: a file is missing or not as stated.
    """
    # Imported here so that reading processes, which never see an index, start without pyarrow.
    import pyarrow
    import pyarrow.dataset

    files = [Path(parquet_name(str(shard))) for shard in shards]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing}, the index of its shard, is missing; build the shards again to restore it")
    try:
        dataset = pyarrow.dataset.dataset([str(file) for file in files], format="parquet")
        columns = [*_COLUMNS, "__fragment_index"]
        table = dataset.scanner(columns=columns, filter=pyarrow.dataset.field("status") == "ok").to_table()
        return _to_arrays(table.rename_columns([*_COLUMNS, _SHARD]))
    except (pyarrow.ArrowException, ValueError, TypeError) as error:
        raise _not_as_expected(str(shards[0].parent), error) from error


def remote_rows(url: str, listed: ShardList, digest: str, cache: CacheConfig | None) -> dict[str, Any]:
    """As `local_rows`, for a remote split; the rows of all its shards are kept in the cache as one file.

    Args:
        digest: of the shard list; what follows from the shards is kept under this name.

    Raises:
        DataError: a file is missing or not as stated.
        StorageError: the server cannot be reached or refuses.
        DglError: the cache cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    disk = DiskCache(cache) if cache else None
    kept = disk.recall(f"{digest}.parquet") if disk else None
    try:
        if kept is not None:
            return _to_arrays(_read_here(kept))
        with ThreadPoolExecutor(_FETCHED_AT_ONCE) as pool:
            table = _join_rows(pool.map(_read_remote, [url_inside(url, parquet_name(entry["url"])) for entry in listed]))
        rows = _to_arrays(table)
    except (pyarrow.ArrowException, KeyError, ValueError, TypeError) as error:
        raise _not_as_expected(public_url(url), error) from error
    if disk:
        stream = io.BytesIO()
        pyarrow.parquet.write_table(table, stream)
        disk.remember(f"{digest}.parquet", stream.getvalue())
    return rows


def parquet_name(shard: str) -> str:
    """The name of the Parquet file of a shard."""
    return f"{shard.removesuffix('.tar')}.parquet"


def _read_remote(url: str) -> Any:
    import pyarrow.compute

    try:
        with Storage().local_copy(url) as path:
            table = _read_here(path.read_bytes(), [*_COLUMNS, "status"])
    except NotThereError:
        raise DataError(f"{public_url(url)}, the index of its shard, is missing; build the shards again to restore it") from None
    return table.filter(pyarrow.compute.field("status") == "ok").select(_COLUMNS)


def _read_here(content: bytes, columns: list[str] | None = None) -> Any:
    """The table of a Parquet file, or those of `columns` that it has, read by the calling thread alone.

    Threads of pyarrow would hold on to `content` for a moment after they are done, and a process that ends then is aborted.
    """
    import pyarrow
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content), pre_buffer=False).read(columns, use_threads=False)


def _join_rows(tables: Iterable[Any]) -> Any:
    import pyarrow

    numbered = [
        table.append_column(_SHARD, pyarrow.array(np.full(table.num_rows, number), pyarrow.int64())) for number, table in enumerate(tables)
    ]
    return pyarrow.concat_tables(numbered)


def _not_as_expected(split: str, error: Exception) -> DataError:
    return DataError(f"the Parquet files of {split} are not as expected ({str(error).splitlines()[0]}); build the shards again")


def _check_list(content: Any, source: str) -> ShardList:
    listed = content.get("shardlist") if isinstance(content, dict) else None
    wanted = {"url": str, "nsamples": int, "filesize": int, "sha256": str}
    if not isinstance(listed, list) or not all(
        isinstance(entry, dict) and all(isinstance(entry.get(name), kind) for name, kind in wanted.items()) for entry in listed
    ):
        raise DataError(f"{source} is no shard list: each entry of 'shardlist' needs {', '.join(wanted)}; build the shards again")
    strange = next((entry["sha256"] for entry in listed if not _SHA256.fullmatch(entry["sha256"])), None)
    if strange is not None:
        raise DataError(f"{source} is no shard list: {strange[:80]!r} is no SHA-256 in hexadecimal; build the shards again")
    if not listed:
        raise DataError(f"{source} lists no shards; check the shard build's report for why")
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
        "shard": column(_SHARD, np.int64),
        "offset": column("offset", np.int64),
        "size": column("size", np.int64),
        "num_frames": column("n_frames", np.int64),
        "num_captions": column("n_captions", np.int64),
        "sha256": np.frombuffer(digests, dtype=np.uint8).reshape(table.num_rows, 32),
    }
