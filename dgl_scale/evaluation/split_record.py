"""What the shard build knows of a split: how many of its videos were found, and what other splits share with it."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from dgl_scale.errors import DataError
from dgl_scale.files import read_json
from dgl_scale.storage.urls import is_url

COUNTS = ("annotated", "found", "missing", "failed")


def read_coverage(results: Mapping[str, Any]) -> dict[str, int]:
    """Counts of videos by the names in `COUNTS`: of the evaluation, else of the build beside its shards; empty where nobody knows."""
    counts = results.get("coverage") or _split_of_build(results).get("coverage") or {}
    return {name: int(counts[name]) for name in COUNTS if isinstance(counts.get(name), int)}


def read_leakage(results: Mapping[str, Any]) -> list[str] | None:
    """Sentences on the videos and captions of a split that other splits have too; None where `shards leakage` was not run."""
    record = results.get("leakage") or _beside(results, "leakage.json")
    if not record:
        return None
    split, lines = _split_name(results), []
    for pair in record.get("video_pairs", []):
        if split in pair["splits"] and pair["splits"][0] != pair["splits"][1]:
            (other,) = set(pair["splits"]) - {split}
            lines.append(f"{pair['exact']:,} equal and {pair['near']:,} nearly equal videos in {other}.")
    for shared in record.get("captions", []):
        if shared["of"] == split and shared["also_in"] != split:
            lines.append(f"{shared['captions']:,} captions of {shared['videos']:,} videos are captions of {shared['also_in']} too.")
    return lines


def _split_of_build(results: Mapping[str, Any]) -> Mapping[str, Any]:
    split: Mapping[str, Any] = _beside(results, "build.json").get("splits", {}).get(_split_name(results), {})
    return split


def _split_name(results: Mapping[str, Any]) -> str:
    return PurePosixPath(results["split_folder"]).name


def _beside(results: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A record of the build that made the shards; told where it is on this machine and whole, no reason to fail where it is not."""
    folder = results["split_folder"]
    if is_url(folder):
        return {}
    try:
        content = read_json(Path(folder).parent / name)
    except DataError:
        return {}
    return content if isinstance(content, dict) else {}
