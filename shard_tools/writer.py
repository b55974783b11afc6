"""One planned shard: its tars and their ledgers, whole or absent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from dgl_scale.data.samples import Sample, SampleMetadata
from dgl_scale.shards_config import ShardsConfig
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import Location, join, public_url
from shard_tools.annotations.videos import AnnotatedVideo, clean_text
from shard_tools.decoder import Decoder
from shard_tools.failures import SampleFailure, Status
from shard_tools.finished import EarlierSamples, ShardSummary, part_name, summarize
from shard_tools.hashing_tar import HashingTar
from shard_tools.ledger import Ledger, LedgerRow, write_ledger
from shard_tools.plan import PlannedSample, ShardPlan
from shard_tools.video_request import DecodedVideo, VideoRequest
from shard_tools.video_source import local_video

_CRASHES = 3
"""So often a video kills the decoding process before that is its fault."""


def build_shard(plan: ShardPlan, config: ShardsConfig, output: Location) -> list[ShardSummary]:
    """Decode the videos of a shard and write its tar, then its ledger, below `output`.

    The body of a Ray task. The same plan, config and files give the same bytes. A video that fails
    is a row of the ledger and takes no place in the tar.

    Args:
        plan: the shard.
        config: with absolute paths.
        output: the folder of the build; the shard goes to `output/<split>`.

    Returns:
        One summary, or more where `max_shard_bytes` makes the shard go on in further tars.

    Raises:
        DglError: the output cannot be written, or the decoding process cannot start.
    """
    storage = Storage(config.storage)
    with _Parts(plan, output, storage, config.max_shard_bytes) as parts:
        with Decoder(config.decoder) as decoder:
            for planned in plan.samples:
                _add(parts, planned, config, decoder, storage)
        return parts.publish()


def retry_shard(plan: ShardPlan, config: ShardsConfig, output: Location) -> list[ShardSummary]:
    """Try the failed videos of a finished shard again; the good ones keep the bytes that they have.

    Written anew, as `build_shard` would write it now, if anything has become different.

    Raises:
        DglError: as `build_shard`.
    """
    storage = Storage(config.storage)
    with EarlierSamples(plan, output, storage) as earlier, _Parts(plan, output, storage, config.max_shard_bytes) as parts:
        with Decoder(config.decoder) as decoder:
            for planned in plan.samples:
                found = earlier.read(planned.key)
                if found is not None:
                    parts.add(*found)
                else:
                    _add(parts, planned, config, decoder, storage)
        mended = [row.video_id for row in parts.rows if row.status is Status.OK and row.key in earlier.failed]
        if [(row.key, row.status, row.error) for row in parts.rows] == earlier.outcomes:
            return earlier.summaries
        first, *others = parts.publish()
        return [replace(first, mended=tuple(mended)), *others]


class _Parts:
    """The tars of a planned shard while they are written; they appear together, when `publish` is called."""

    def __init__(self, plan: ShardPlan, output: Location, storage: Storage, max_bytes: int | None) -> None:
        self._plan = plan
        self._folder = join(output, plan.split)
        self._storage = storage
        self._max_bytes = max_bytes
        self._files = contextlib.ExitStack()
        # Each part's rows, and its tar, opened by its first good sample: a tar without samples is an error to many readers.
        self._parts: list[tuple[list[LedgerRow], HashingTar | None]] = [([], None)]

    @property
    def rows(self) -> list[LedgerRow]:
        """Of all parts."""
        return [row for rows, _ in self._parts for row in rows]

    def add(self, sample: Sample, backend: str | None) -> None:
        rows, tar = self._parts[-1]
        if tar is not None and self._max_bytes is not None and tar.size_with(sample) > self._max_bytes:
            rows, tar = [], None
            self._parts.append((rows, tar))
        if tar is None:
            tar = self._files.enter_context(self._new_tar(len(self._parts) - 1))
            self._parts[-1] = (rows, tar)
        rows.append(replace(tar.add(sample), decoder=backend))

    def add_failure(self, planned: PlannedSample, failure: SampleFailure) -> None:
        video_id = clean_text(planned.video.video_id)
        self._parts[-1][0].append(LedgerRow(planned.key, video_id, failure.status, failure.message))

    def publish(self) -> list[ShardSummary]:
        """Let the shard appear: the tars, then the ledgers that say that they are complete."""
        names = [part_name(self._plan.name, part) for part in range(len(self._parts))]
        for name in reversed(names):
            # A ledger of before would vouch for the new tar.
            self._storage.remove(join(self._folder, f"{name}.parquet"))
        self._files.close()
        ledgers = [Ledger(tuple(rows)) if tar is None else tar.ledger(rows) for rows, tar in self._parts]
        for name, ledger in zip(names, ledgers, strict=True):
            write_ledger(join(self._folder, f"{name}.parquet"), ledger, self._storage)
        return summarize(self._plan, ledgers)

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *error: Any) -> None:
        # Not published: the temporary files go, as after an error.
        with contextlib.suppress(_Unpublished), self._files:
            raise _Unpublished

    @contextlib.contextmanager
    def _new_tar(self, part: int) -> Iterator[HashingTar]:
        with self._storage.output_file(join(self._folder, f"{part_name(self._plan.name, part)}.tar")) as stream:
            tar = HashingTar(stream)
            yield tar
            tar.close()


class _Unpublished(Exception):
    """Ends the writing of a shard without its files."""


def _add(parts: _Parts, planned: PlannedSample, config: ShardsConfig, decoder: Decoder, storage: Storage) -> None:
    try:
        sample, backend = _make_sample(planned, config, decoder, storage)
    except SampleFailure as failure:
        parts.add_failure(planned, failure)
    else:
        parts.add(sample, backend)


def _make_sample(planned: PlannedSample, config: ShardsConfig, decoder: Decoder, storage: Storage) -> tuple[Sample, str]:
    video = planned.video
    if video.problem is not None:
        raise video.problem
    frames = config.frames
    max_bytes = int(config.storage.max_video_gib * 2**30)
    with local_video(config.videos, video.path, storage, max_bytes) as path:
        request = VideoRequest(
            path=str(path),
            start=video.start,
            end=video.end,
            fps=frames.fps,
            max_frames=frames.max_frames,
            short_side=frames.short_side,
            jpeg_quality=frames.jpeg_quality,
            jpeg_tables=frames.jpeg_tables,
        )
        decoded = decode_surely(decoder, request)
    return Sample(planned.key, decoded.frames, _metadata(video, decoded)), decoded.decoder


def decode_surely(decoder: Decoder, request: VideoRequest) -> DecodedVideo:
    """Decode; a video that hangs or kills the decoding process is tried with PyAV alone, under the same limits.

    Raises:
        SampleFailure, DglError: as `Decoder.decode`; where PyAV fails too, with its status and both reasons.
    """
    try:
        return _decode_though_killed(decoder, request)
    except SampleFailure as failure:
        if failure.status not in {Status.CRASHED, Status.TIMEOUT}:
            raise
        first = failure
    try:
        return decoder.decode(replace(request, skip_decord=True))
    except SampleFailure as failure:
        raise SampleFailure(failure.status, f"{first.message}; with PyAV alone: {failure.message}") from failure


def _decode_though_killed(decoder: Decoder, request: VideoRequest) -> DecodedVideo:
    # Others kill processes too, a system short of memory above all, and would decide which backend serves.
    for _ in range(_CRASHES - 1):
        try:
            return decoder.decode(request)
        except SampleFailure as failure:
            if failure.status is not Status.CRASHED:
                raise
    return decoder.decode(request)


def _metadata(video: AnnotatedVideo, decoded: DecodedVideo) -> SampleMetadata:
    return SampleMetadata(
        video_id=video.video_id,
        captions=list(video.captions),
        split=video.split,
        start=video.start,
        end=video.end,
        duration=decoded.duration,
        fps=decoded.fps,
        frame_times=decoded.frame_times,
        width=decoded.width,
        height=decoded.height,
        source=clean_text(public_url(video.path)),
        extra=video.extra,
    )
