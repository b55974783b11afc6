"""A validation split for datasets that have none: videos held out of the training split, by seed."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from dgl_scale.errors import ConfigError
from shard_tools.annotations.videos import AnnotatedVideo

_TRAIN, _VALIDATION = "train", "validation"
_HASH_BYTES = 8


def hold_out_videos(videos: Iterable[AnnotatedVideo], count: int, seed: int) -> list[AnnotatedVideo]:
    """The videos, `count` of split train moved to split validation; order and all else unchanged.

    Clips of one source video stay together, so that nothing of a validation clip is trained on. Which
    ones are chosen depends on `seed` and the names of the videos only. Holds all videos in memory.

    Raises:
        ConfigError: fewer than `count` + 1 training videos, or there is a split validation already.
    """
    videos = list(_checked(videos, f"validation_videos {count}"))
    members: dict[str, set[str]] = {}
    for video in videos:
        if video.split == _TRAIN:
            members.setdefault(_source(video), set()).add(video.video_id)
    total = sum(map(len, members.values()))
    if total <= count:
        raise ConfigError(f"validation_videos {count}: split {_TRAIN} has only {total} videos; hold out fewer")
    chosen, left = set(), count
    for source in sorted(members, key=lambda name: _hash(seed, name)):
        if len(members[source]) <= left:
            chosen.add(source)
            left -= len(members[source])
    if left:
        raise ConfigError(
            f"validation_videos {count}: source videos have too many clips each to hold out exactly so many; try {count - left}"
        )
    return [_moved(video) if video.split == _TRAIN and _source(video) in chosen else video for video in videos]


def hold_out_fraction(videos: Iterable[AnnotatedVideo], fraction: float, seed: int) -> Iterator[AnnotatedVideo]:
    """The videos, each source video of split train moved to split validation with probability `fraction`, by seed.

    A video's fate depends on `seed` and its source's name alone: adding videos moves no other.

    Raises:
        ConfigError: there is a split validation already; at the end, none or all were moved.
    """
    limit = int(fraction * 256**_HASH_BYTES)
    kept = moved = 0
    for video in _checked(videos, f"validation_fraction {fraction:g}"):
        is_chosen = video.split == _TRAIN and int.from_bytes(_hash(seed, _source(video))) < limit
        moved += is_chosen
        kept += video.split == _TRAIN and not is_chosen
        yield _moved(video) if is_chosen else video
    if not kept or not moved:
        raise ConfigError(
            f"validation_fraction {fraction:g} moves {moved} of {kept + moved} training videos; choose another, or validation_videos"
        )


def _checked(videos: Iterable[AnnotatedVideo], what: str) -> Iterator[AnnotatedVideo]:
    for video in videos:
        if video.split == _VALIDATION:
            raise ConfigError(f"{what}: the annotations have a split {_VALIDATION} already; remove that key, or leave their split out")
        yield video


def _source(video: AnnotatedVideo) -> str:
    return str(video.extra.get("source_video", video.video_id))


def _hash(seed: int, source: str) -> bytes:
    # Not the hash that shuffles samples: a split must not be a stretch of the shuffled order.
    return hashlib.sha256(f"validation:{seed}:{source}".encode()).digest()[:_HASH_BYTES]


def _moved(video: AnnotatedVideo) -> AnnotatedVideo:
    return replace(video, split=_VALIDATION)
