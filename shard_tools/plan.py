"""Which video goes to which shard, under which key: pure functions of annotation and config."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dgl_scale.errors import ConfigError, DataError
from shard_tools.annotations.videos import AnnotatedVideo

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
# A tar header holds names of 100 bytes; the longest suffix is `.00000.jpg`.
_MAX_KEY_CHARS = 80
_SLUG_CHARS = 60
_HASH_CHARS = 12


@dataclass(frozen=True)
class PlannedSample:
    """A video and its key in the tar."""

    key: str
    video: AnnotatedVideo


@dataclass(frozen=True)
class ShardPlan:
    """What one shard holds, in order."""

    name: str
    split: str
    samples: tuple[PlannedSample, ...]


def sample_key(video_id: str) -> str:
    """The tar key of a video: its id where that is safe, else a readable part of it and a hash.

    The hash is of the whole id, so ids that differ only in unsafe characters get different keys.
    """
    if len(video_id) <= _MAX_KEY_CHARS and not _UNSAFE.search(video_id) and video_id:
        return video_id
    slug = _UNSAFE.sub("-", video_id).strip("-")[:_SLUG_CHARS]
    digest = hashlib.sha256(video_id.encode("utf-8")).hexdigest()[:_HASH_CHARS]
    return f"{slug}-{digest}" if slug else digest


def plan_shards(
    videos: Sequence[AnnotatedVideo], dataset: str, max_samples_per_shard: int, shuffle_seed: int | None, splits: Sequence[str] | None
) -> list[ShardPlan]:
    """The shards of all (or the given) splits, in order of split name and number.

    Within a split the order is that of a hash of seed and key, or the annotation's if the seed is None;
    it depends on nothing else, so adding a split changes no other.

    Raises:
        ConfigError: a split that the annotation does not have.
        DataError: two ids give one key.
    """
    members: dict[str, list[PlannedSample]] = {}
    ids: dict[str, str] = {}
    for video in videos:
        key = sample_key(video.video_id)
        if ids.setdefault(key, video.video_id) != video.video_id:
            raise DataError(f"ids {ids[key]!r} and {video.video_id!r} both give the sample key {key!r}; rename one")
        members.setdefault(video.split, []).append(PlannedSample(key, video))
    unknown = sorted(set(splits or ()) - set(members))
    if unknown:
        raise ConfigError(f"splits: no video of split {unknown[0]!r}; the annotations have {', '.join(sorted(members))}")
    return [
        ShardPlan(f"{dataset}-{split}-{number:06d}", split, tuple(part))
        for split in sorted(set(splits or members))
        for number, part in enumerate(_parts(_shuffled(members[split], shuffle_seed), max_samples_per_shard))
    ]


def annotations_sha256(videos: Iterable[AnnotatedVideo]) -> str:
    """SHA-256 of everything that the annotations say, in their order."""
    digest = hashlib.sha256()
    for video in videos:
        problem = video.problem and [video.problem.status, video.problem.message]
        row = [video.video_id, video.path, video.captions, video.split, video.start, video.end, video.extra, problem]
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _shuffled(samples: list[PlannedSample], seed: int | None) -> list[PlannedSample]:
    if seed is None:
        return samples
    return sorted(samples, key=lambda sample: hashlib.sha256(f"{seed}:{sample.key}".encode()).digest())


def _parts(samples: list[PlannedSample], size: int) -> Iterable[list[PlannedSample]]:
    return (samples[start : start + size] for start in range(0, len(samples), size))
