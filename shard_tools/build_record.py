"""What a build says of itself: `build.json`, the shard lists of a split, and whether a build may go on."""

import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

from dgl_scale.errors import ConfigError
from dgl_scale.files import json_sha256
from dgl_scale.shards_config import ShardsConfig
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import Location, join, public_url
from shard_tools.coverage import count_coverage, coverage_by_split
from shard_tools.finished import ShardSummary
from shard_tools.public_config import public_config

# They say where, how fast and under which limits, never which bytes; so they may change between two runs.
_NEUTRAL_KEYS = {"output", "decoder", "storage", "max_failed_fraction", "require_coverage", "cpus_per_task", "max_tasks_in_flight"}
_VERSIONS_OF = ("dgl-scale", "decord2", "av", "pillow", "simplejpeg", "webdataset", "pyarrow", "ray")


class BuildRecord:
    """The `build.json` of an output folder: written when a build begins, completed when it ends.

    Holds nothing that depends on time, machine names or the number of workers.

    Args:
        output: the build's folder.
        config: as written by the user, paths unresolved, so that the record is the same everywhere.
        annotations_sha256: digest of what the annotations say.
        storage: writes it.
    """

    def __init__(self, output: Location, config: ShardsConfig, annotations_sha256: str, storage: Storage | None = None) -> None:
        self._output = output
        self._config = public_config(config).model_dump(mode="json", exclude=_NEUTRAL_KEYS)
        self._annotations_sha256 = annotations_sha256
        self._storage = storage or Storage()

    def begin(self) -> None:
        """Check the record of an earlier build, or write a first one.

        Raises:
            ConfigError: the folder belongs to a build of another config or of other annotations.
            DglError: the folder cannot be written.
        """
        path = join(self._output, "build.json")
        if self._storage.size(path) is None:
            self.reopen()
            return
        earlier = self._storage.read_json(path)
        folder = public_url(self._output)
        different = _differences(earlier.get("config", {}), self._config)
        if different:
            raise ConfigError(f"{folder} was begun with another config: {'; '.join(different)}; choose another output or remove it")
        if earlier.get("annotations_sha256") != self._annotations_sha256:
            raise ConfigError(f"the annotations have changed since {folder} was begun; choose another output or remove it")

    def reopen(self) -> None:
        """Say that shards are about to be written.

        Raises:
            DglError: the folder cannot be written.
        """
        self._write("building", {})

    def end(self, status: str, shards: Sequence[ShardSummary], num_extra: int | None) -> None:
        """Write totals, statuses and coverage of a build that has done its work.

        Args:
            status: `complete`, `too_many_failed` or `low_coverage`.
            shards: all of them.
            num_extra: video files that no annotation names; None where they cannot be listed.
        """
        coverage = {**count_coverage(shards).as_json(), "extra": num_extra}
        splits = {
            name: {**_totals([shard for shard in shards if shard.split == name]), "coverage": covered.as_json()}
            for name, covered in coverage_by_split(shards).items()
        }
        self._write(status, {"totals": _totals(shards), "coverage": coverage, "splits": splits})

    def _write(self, status: str, results: dict[str, Any]) -> None:
        record = {
            "dataset": self._config["dataset"],
            "status": status,
            **results,
            "config": self._config,
            "config_sha256": json_sha256(self._config),
            "annotations_sha256": self._annotations_sha256,
            "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _VERSIONS_OF}},
        }
        self._storage.write_json(join(self._output, "build.json"), record)


def write_shard_lists(folder: Location, shards: Iterable[ShardSummary], storage: Storage | None = None) -> None:
    """Write a split's `index.json` (as wids reads it) and `sizes.json` (as open_clip reads it).

    Shards in which every sample failed have no tar and are not listed.

    Raises:
        DglError: the folder cannot be written.
    """
    listed = [shard for shard in shards if shard.num_samples]
    entries = [
        {"url": f"{shard.name}.tar", "nsamples": shard.num_samples, "filesize": shard.bytes, "sha256": shard.sha256} for shard in listed
    ]
    storage = storage or Storage()
    storage.write_json(join(folder, "sizes.json"), {f"{shard.name}.tar": shard.num_samples for shard in listed})
    storage.write_json(join(folder, "index.json"), {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": entries})


def _totals(shards: Sequence[ShardSummary]) -> dict[str, Any]:
    return {
        "shards": len(shards),
        "parts": sum(shard.is_part for shard in shards),
        "samples": sum(shard.num_samples for shard in shards),
        "failed": sum(shard.num_failed for shard in shards),
        "bytes": sum(shard.bytes for shard in shards),
        "statuses": dict(sorted(_count(shards).items())),
    }


def _count(shards: Iterable[ShardSummary]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for shard in shards:
        counts.update(shard.statuses)
    return counts


def _differences(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    before, after = _flatten(earlier), _flatten(now)
    return [
        f"{key} was {before.get(key)!r}, now {after.get(key)!r}" for key in sorted({*before, *after}) if before.get(key) != after.get(key)
    ]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
