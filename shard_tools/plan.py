"""Which video goes to which shard, under which key: a function of annotation and config alone.

Never holds all videos in memory. Rows are spread over buckets on disk by a hash that also is their order; a bucket that
is still too large for memory is spread again; each alone is then joined, sorted and cut into shards, which lie on disk
until their turn comes.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import pyarrow

from dgl_scale.errors import ConfigError, DataError
from dgl_scale.files import json_sha256
from dgl_scale.storage.urls import public_url
from shard_tools.annotations.videos import AnnotatedVideo, join_rows
from shard_tools.failures import SampleFailure, Status
from shard_tools.spool import Spool

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
# A tar header holds names of 100 bytes; the longest suffix is `.00000.jpg`.
_MAX_KEY_CHARS = 80
_SLUG_CHARS = 60
_HASH_CHARS = 12
_NUM_BUCKETS = 256
# About 150 MB. So many rows are sorted at once, or those of one video.
_MAX_BUCKET_ROWS = 30_000
_MAX_DEPTH = 4
_ORDER_BITS = 64
_TEXT = pyarrow.string()
_ROW = pyarrow.schema([("order", pyarrow.binary()), ("position", pyarrow.int64()), ("split", _TEXT), ("key", _TEXT), ("video", _TEXT)])
_SHARD_ROW = pyarrow.schema([("key", _TEXT), ("video", _TEXT)])


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


class Plan(Sequence[ShardPlan]):
    """The shards of a build, in order of split name and number; each is read from disk when it is asked for.

    Attributes:
        splits: names of the splits that are built, sorted.
        num_videos: in all these shards.
        annotations_sha256: of everything that the annotations say, also of splits that are not built.
        scratch_bytes: on disk at most while the plan was made.
    """

    def __init__(self, dataset: str, shards: Spool, sizes: dict[str, array[int]], annotations_sha256: str, scratch_bytes: int) -> None:
        self._dataset = dataset
        self._shards = shards
        self._sizes = sizes
        self.splits = sorted(sizes)
        self.num_videos = sum(sum(numbers) for numbers in sizes.values())
        self.annotations_sha256 = annotations_sha256
        self.scratch_bytes = scratch_bytes

    def __len__(self) -> int:
        return sum(map(len, self._sizes.values()))

    @overload
    def __getitem__(self, index: int) -> ShardPlan: ...
    @overload
    def __getitem__(self, index: slice) -> list[ShardPlan]: ...
    def __getitem__(self, index: int | slice) -> ShardPlan | list[ShardPlan]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        split, number = self._place(range(len(self))[index])
        rows = self._shards.read((split, number)).to_pylist()
        return ShardPlan(self._name(split, number), split, tuple(PlannedSample(row["key"], _video(row["video"])) for row in rows))

    def names(self) -> Iterator[str]:
        """Of all shards, in order, without reading their samples."""
        return (self._name(split, number) for split in self.splits for number in range(len(self._sizes[split])))

    def num_videos_of(self, numbers: Iterable[int]) -> int:
        """Planned in these shards."""
        return sum(self._sizes[split][number] for split, number in map(self._place, numbers))

    def _place(self, index: int) -> tuple[str, int]:
        for split in self.splits:
            if index < len(self._sizes[split]):
                return split, index
            index -= len(self._sizes[split])
        raise IndexError(index)

    def _name(self, split: str, number: int) -> str:
        return f"{self._dataset}-{split}-{number:06d}"

    def close(self) -> None:
        """Give the disk space of the plan back."""
        self._shards.close()


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
    videos: Iterable[AnnotatedVideo],
    dataset: str,
    max_samples_per_shard: int,
    shuffle_seed: int | None,
    splits: Sequence[str] | None,
    scratch: str | None = None,
) -> Plan:
    """The shards of all (or the given) splits; every one but a split's last holds `max_samples_per_shard` videos.

    Within a split the order is that of a hash of seed and key, or the annotation's if the seed is None;
    it depends on nothing else, so adding a split changes no other.

    Args:
        videos: rows of one video are joined, wherever they stand (`join_rows`).
        scratch: folder for about 0.2 KB a video and caption; None: the system's temporary folder.

    Raises:
        ConfigError: a split that the annotation does not have.
        DataError: two ids give one key, or one id names two videos.
        DglError: the scratch folder is full.
    """
    rows = Spool(_ROW, scratch)
    shards = Spool(_SHARD_ROW, scratch)
    try:
        _spread(videos, shuffle_seed, rows)
        if shuffle_seed is None:
            joined, rows = rows, Spool(_ROW, scratch)
            _restore_order(joined, rows, scratch)
        return _cut(rows, shards, scratch, dataset, max_samples_per_shard, splits)
    except BaseException:
        shards.close()
        raise
    finally:
        rows.close()


def _spread(videos: Iterable[AnnotatedVideo], seed: int | None, rows: Spool) -> None:
    """Every row to the bucket of its place in the order; rows of one video have the same."""
    for position, video in enumerate(videos):
        key = sample_key(video.video_id)
        order = hashlib.sha256(f"{seed}:{key}".encode()).digest()
        rows.append(order[0], (order, position, video.split, key, _text(video)))
    rows.flush()


def _restore_order(rows: Spool, ordered: Spool, scratch: str | None) -> None:
    """The joined videos of `rows` to the buckets of the annotation's order."""
    total = rows.num_rows
    for table in _in_order(rows, scratch):
        for position, split, key, video in _join(table):
            order = ((position << _ORDER_BITS) // total).to_bytes(_ORDER_BITS // 8)
            ordered.append(order[0], (order, position, split, key, video))
    rows.close()
    ordered.flush()


def _in_order(rows: Spool, scratch: str | None, depth: int = 1) -> Iterator[pyarrow.Table]:
    """All rows, in tables that follow each other in order and are small enough to be sorted.

    Args:
        rows: in the bucket of byte `depth - 1` of their order.
    """
    for bucket in range(_NUM_BUCKETS):
        # Rows of one video have one order, and stay together.
        if rows.rows_of[bucket] <= _MAX_BUCKET_ROWS or depth == _MAX_DEPTH:
            yield rows.read(bucket)
            continue
        with contextlib.closing(Spool(_ROW, scratch)) as finer:
            for batch in rows.batches(bucket):
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    finer.append(row[0][depth], row)
            finer.flush()
            yield from _in_order(finer, scratch, depth + 1)


def _cut(rows: Spool, shards: Spool, scratch: str | None, dataset: str, size: int, splits: Sequence[str] | None) -> Plan:
    digests: dict[str, Any] = {}
    open_shards: dict[str, list[tuple[str, str]]] = {}
    sizes: dict[str, array[int]] = {}

    def close_shard(split: str) -> None:
        members = open_shards.pop(split)
        numbers = sizes.setdefault(split, array("Q"))
        shards.write((split, len(numbers)), members)
        numbers.append(len(members))

    for table in _in_order(rows, scratch):
        for _, split, key, video in _join(table):
            digests.setdefault(split, hashlib.sha256()).update(_public(video).encode() + b"\n")
            if splits is not None and split not in splits:
                continue
            members = open_shards.setdefault(split, [])
            members.append((key, video))
            if len(members) == size:
                close_shard(split)
    for split in sorted(open_shards):
        close_shard(split)
    unknown = sorted(set(splits or ()) - set(digests))
    if unknown:
        raise ConfigError(f"splits: no video of split {unknown[0]!r}; the annotations have {', '.join(sorted(digests))}")
    digest = json_sha256({split: digest.hexdigest() for split, digest in digests.items()})
    return Plan(dataset, shards, sizes, digest, rows.num_bytes + shards.num_bytes)


def _join(rows: pyarrow.Table) -> Iterator[tuple[int, str, str, str]]:
    """Position, split, key and text of each video of a bucket, in order.

    Raises:
        DataError: two ids give one key, or one id names two videos.
    """
    rows = rows.sort_by([("order", "ascending"), ("position", "ascending")])
    columns = zip(*(rows[name].to_pylist() for name in ("position", "split", "key", "video")), strict=True)
    for key, group in itertools.groupby(columns, key=lambda row: row[2]):
        (position, split, _, text), *others = group
        if others:
            text = _text(_join_videos(key, [_video(row[3], joined=False) for row in ((position, split, key, text), *others)]))
        yield position, split, key, text


def _join_videos(key: str, videos: Sequence[AnnotatedVideo]) -> AnnotatedVideo:
    first = videos[0].video_id
    for video in videos:
        if video.video_id != first:
            raise DataError(f"ids {first!r} and {video.video_id!r} both give the sample key {key!r}; rename one")
    return join_rows(videos)[0]


def _text(video: AnnotatedVideo) -> str:
    problem = video.problem and [video.problem.status, video.problem.message]
    row = [video.video_id, video.path, video.captions, video.split, video.start, video.end, video.extra, problem]
    # ASCII, as a path may hold bytes that are no text.
    return json.dumps(row, sort_keys=True)


def _video(text: str, joined: bool = True) -> AnnotatedVideo:
    video_id, path, captions, split, start, end, extra, problem = json.loads(text)
    failure = SampleFailure(Status(problem[0]), problem[1]) if problem else None
    video = AnnotatedVideo(video_id, path, tuple(captions), split, start, end, extra, failure)
    return join_rows([video])[0] if joined else video


def _public(text: str) -> str:
    """What of a row tells whether the annotations have changed: addresses count without their signatures."""
    if "://" not in text:
        return text
    row = json.loads(text)
    return json.dumps([row[0], public_url(row[1]), *row[2:]], sort_keys=True)
