"""The splits of a config as evaluation needs them: where they are, by which name, and what their build says of them."""

from pathlib import Path
from typing import Any

from dgl_scale.config import RunConfig
from dgl_scale.data.index import SplitIndex, load_split
from dgl_scale.data.location import dataset_name
from dgl_scale.errors import ConfigError, DglError
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import Location, is_url, join


def evaluated_split(config: RunConfig) -> str:
    """Where the shards of the split are that is evaluated; ConfigError where the config names none."""
    folder: str | None = getattr(config.data, config.evaluation.split)
    if folder is None:
        raise ConfigError(f"data.{config.evaluation.split} is missing: the folder of the {config.evaluation.split} split's shards")
    return absolute(folder)


def absolute(split: str) -> str:
    """Where a split is, for processes that may run in another folder."""
    return split if is_url(split) else str(Path(split).expanduser().resolve())


def open_split(config: RunConfig, split: str) -> SplitIndex:
    """The index of a split, by its `absolute` folder or address; of the training split without what the config excludes.

    Raises:
        DataError, StorageError: as `load_split`.
    """
    is_training = config.data.train is not None and split == absolute(config.data.train)
    return load_split(split, exclude=config.data.exclude if is_training else None, cache=config.data.cache)


def dataset_of(split: str) -> str | None:
    """The dataset of a split, by its folder or address; None where the shards' names do not tell, or it cannot be read."""
    try:
        return dataset_name(str(Storage().read_json(join(_location(split), "index.json"))["shardlist"][0]["url"]))
    except (DglError, KeyError, IndexError, TypeError):
        return None


def build_facts(split: str, num_videos: int) -> dict[str, Any]:
    """What the shard build says of a split: `coverage` and `leakage` of a results.json, each only where it is known.

    Args:
        split: its folder or address; the records are one folder above.
        num_videos: readable videos of the split; a record of another number is of other shards, and not used.
    """
    name = split.rstrip("/").rpartition("/")[2]
    facts = {}
    built = _record(split, "build.json").get("splits", {}).get(name, {})
    if built.get("samples") == num_videos and built.get("coverage"):
        facts["coverage"] = built["coverage"]
    leakage = _record(split, "leakage.json")
    if leakage.get("videos", {}).get(name) == num_videos:
        facts["leakage"] = {
            "video_pairs": [pair for pair in leakage.get("video_pairs", []) if name in pair["splits"]],
            "captions": [shared for shared in leakage.get("captions", []) if shared["of"] == name],
        }
    return facts


def _record(split: str, name: str) -> dict[str, Any]:
    location = _location(split)
    folder = location.parent if isinstance(location, Path) else location.rstrip("/").rpartition("/")[0]
    try:
        record = Storage().read_json(join(folder, name))
    except DglError:
        return {}
    return record if isinstance(record, dict) else {}


def _location(split: str) -> Location:
    return split if is_url(split) else Path(split)
