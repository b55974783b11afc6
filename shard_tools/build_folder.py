"""A build that is done, wherever it lies: its record, the names of its shards, and where reports of it go."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgl_scale.errors import ConfigError, DataError
from dgl_scale.files import write_text
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import Location, is_url, join, public_url, scheme_of

# What a record says becomes part of a path.
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_PART = re.compile(r"(.+)-part[0-9]+\.tar")
_WEB = frozenset(["http", "https"])


@dataclass(frozen=True)
class SplitFolder:
    """A split of a build.

    Attributes:
        name: of the split.
        folder: where its files lie.
        shards: names of all shards and parts, without suffix, sorted; of those whose videos all failed, too.
        listed: its `index.json`: the entry of each tar, by file name.
        totals: as `build.json` states them.
    """

    name: str
    folder: Location
    shards: tuple[str, ...]
    listed: dict[str, dict[str, Any]]
    totals: dict[str, Any]


def location_of(argument: str) -> Location:
    """The folder or URL that a user names."""
    return argument if is_url(argument) else Path(argument).expanduser()


def on_web(location: Location) -> bool:
    """Whether a web server holds it: it lists no folders and takes no files."""
    return scheme_of(location) in _WEB


def read_record(output: Location, storage: Storage) -> dict[str, Any]:
    """The `build.json` of a build that is done.

    Raises:
        DataError: `output` is no build, or one that is not complete.
        StorageError: the server cannot be reached or refuses.
    """
    record = storage.read_json(join(output, "build.json"))
    if not isinstance(record, dict) or record.get("status") == "building" or "splits" not in record:
        raise DataError(f"{public_url(output)} is not complete; run the build again to go on")
    for name in (str(record.get("dataset")), *record["splits"]):
        if not _NAME.fullmatch(name):
            raise DataError(f"{public_url(output)}/build.json names {name!r}; a dataset or split has letters, digits, '_' and '-' only")
    return record


def read_splits(output: Location, record: dict[str, Any], storage: Storage) -> list[SplitFolder]:
    """The splits of a build, sorted; by its lists alone, as web servers list no folders.

    Raises:
        DataError: a list is missing or damaged.
        StorageError: the server cannot be reached or refuses.
    """
    splits = []
    for split, totals in sorted(record["splits"].items()):
        folder = join(output, split)
        listed = {entry["url"]: entry for entry in storage.read_json(join(folder, "index.json"))["shardlist"]}
        planned = {f"{record['dataset']}-{split}-{number:06d}" for number in range(totals["shards"] - totals["parts"])}
        parts = {url.removesuffix(".tar") for url in listed if (found := _PART.fullmatch(url)) and found[1] in planned}
        splits.append(SplitFolder(split, folder, tuple(sorted(planned | parts)), listed, totals))
    return splits


def report_folder(output: Location, chosen: str | None) -> Location:
    """Where a report of a build goes: `chosen`, or the build itself.

    Raises:
        ConfigError: it is on a web server.
    """
    folder = output if chosen is None else location_of(chosen)
    if on_web(folder):
        raise ConfigError(f"nothing can be written to {public_url(folder)}; give --report FOLDER")
    return folder


def write_report(location: Location, text: str, storage: Storage) -> None:
    """Write a text file, whole or not at all.

    Raises:
        DglError: it cannot be written.
    """
    if not is_url(location):
        write_text(Path(location), text)
        return
    with storage.output_file(location) as stream:
        stream.write(text.encode())
