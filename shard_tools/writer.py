"""One shard: a byte-reproducible tar and its ledger, whole or absent. The door of webdataset."""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import webdataset

from dgl_scale.config import ShardsConfig
from dgl_scale.data.samples import Sample, SampleMetadata, encode_members
from dgl_scale.errors import DataError
from dgl_scale.files import atomic_file, path_inside
from shard_tools.annotations.videos import AnnotatedVideo, clean_text
from shard_tools.decoder import Decoder
from shard_tools.failures import SampleFailure, Status
from shard_tools.ledger import Ledger, LedgerRow, read_ledger, write_ledger
from shard_tools.plan import PlannedSample, ShardPlan
from shard_tools.video_request import DecodedVideo, VideoRequest

# Owner, mode and time of every member; anything but constants would make two builds differ.
_TAR_HEADER = {"user": "dgl", "group": "dgl", "mode": 0o444, "mtime": 0}


@dataclass(frozen=True)
class ShardSummary:
    """What a finished shard adds to lists and totals.

    Attributes:
        statuses: number of rows of each status.
        bytes, sha256: of the tar; 0 and None where no sample is ok, so that there is no tar.
    """

    name: str
    split: str
    statuses: dict[str, int]
    bytes: int
    sha256: str | None

    @property
    def num_samples(self) -> int:
        """Samples in the tar."""
        return self.statuses.get(Status.OK.value, 0)

    @property
    def num_failed(self) -> int:
        """Rows without a sample."""
        return sum(self.statuses.values()) - self.num_samples


def build_shard(plan: ShardPlan, config: ShardsConfig, output: Path) -> ShardSummary:
    """Decode the videos of a shard and write its tar, then its ledger, below `output`.

    The body of a Ray task. The same plan, config and files give the same bytes. A video that fails
    is a row of the ledger and takes no place in the tar.

    Args:
        plan: the shard.
        config: with absolute paths.
        output: the folder of the build; the shard goes to `output/<split>`.

    Raises:
        DglError: the output cannot be written, or the decoding process cannot start.
    """
    tar_path = output / plan.split / f"{plan.name}.tar"
    rows: list[LedgerRow] = []
    with contextlib.ExitStack() as stack:
        decoder = stack.enter_context(Decoder(config.decoder))
        tar: _HashingTar | None = None
        for planned in plan.samples:
            try:
                sample, backend = _make_sample(planned, config, decoder)
            except SampleFailure as failure:
                rows.append(LedgerRow(planned.key, clean_text(planned.video.video_id), failure.status, failure.message))
                continue
            # Opened by the first good sample: a tar without samples is an error to many readers.
            tar = tar or stack.enter_context(_hashing_tar(tar_path))
            rows.append(replace(tar.add(sample), decoder=backend))
    ledger = Ledger(tuple(rows)) if tar is None else tar.ledger(rows)
    write_ledger(tar_path.with_suffix(".parquet"), ledger)
    return _summary(plan, ledger)


def finished_shard(plan: ShardPlan, output: Path) -> ShardSummary | None:
    """The summary of a shard that an earlier build completed; None if it must be built.

    Looks at the ledger and at the tar's size; `verify` looks at every byte.
    """
    tar_path = output / plan.split / f"{plan.name}.tar"
    ledger_path = tar_path.with_suffix(".parquet")
    if not ledger_path.exists():
        return None
    try:
        ledger = read_ledger(ledger_path)
    except DataError:
        return None
    if [row.key for row in ledger.rows] != [planned.key for planned in plan.samples]:
        return None
    if ledger.num_samples and (not tar_path.is_file() or tar_path.stat().st_size != ledger.tar_bytes):
        return None
    return _summary(plan, ledger)


def read_tar(path: Path) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Key and tar members of each sample, as WebDataset's own reader sees them.

    Raises:
        Exception: whatever WebDataset raises for a damaged tar.
    """
    with open(path, "rb") as stream:
        files = webdataset.tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
        for sample in webdataset.tariterators.group_by_keys(files):
            key = sample["__key__"]
            yield key, [(f"{key}.{suffix}", content) for suffix, content in sample.items() if not suffix.startswith("__")]


class _HashingStream:
    """Passes bytes on to a file, hashing all of them and the range of each sample."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream: BinaryIO | None = stream
        self._pending = bytearray()
        self._pending_start = 0
        self._ends: list[int] = []
        self._whole = hashlib.sha256()
        self.range_sha256: list[str] = []
        self.size = 0

    def write(self, content: bytes) -> int:
        if self._stream is None:
            return len(content)
        self._whole.update(content)
        self._pending += content
        self.size += len(content)
        self._settle()
        return self._stream.write(content)

    def end_range(self, offset: int) -> None:
        # The tar writer buffers: the bytes before `offset` may arrive later.
        self._ends.append(offset)
        self._settle()

    def discard(self) -> None:
        # tarfile writes its buffer when it is collected, also after a failure, when the file is closed.
        self._stream = None

    def sha256(self) -> str:
        return self._whole.hexdigest()

    def _settle(self) -> None:
        while self._ends and self.size >= self._ends[0]:
            length = self._ends.pop(0) - self._pending_start
            self.range_sha256.append(hashlib.sha256(self._pending[:length]).hexdigest())
            del self._pending[:length]
            self._pending_start += length


class _HashingTar:
    """A tar being written; `add` gives a ledger row without its hash, `ledger` completes the rows after the end."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = _HashingStream(stream)
        self._writer = webdataset.TarWriter(self._stream, encoder=False, **_TAR_HEADER)

    def add(self, sample: Sample) -> LedgerRow:
        offset = self._writer.tarstream.offset
        members = {name.removeprefix(f"{sample.key}."): content for name, content in encode_members(sample)}
        self._writer.write({"__key__": sample.key, **members})
        end = self._writer.tarstream.offset
        self._stream.end_range(end)
        metadata = sample.metadata
        return LedgerRow(
            key=sample.key,
            video_id=metadata.video_id,
            status=Status.OK,
            offset=offset,
            size=end - offset,
            n_frames=len(sample.frames),
            n_captions=len(metadata.captions),
            duration=metadata.duration,
        )

    def close(self) -> None:
        self._writer.close()

    def discard(self) -> None:
        self._stream.discard()

    def ledger(self, rows: list[LedgerRow]) -> Ledger:
        hashes = iter(self._stream.range_sha256)
        completed = tuple(replace(row, sha256=next(hashes)) if row.status is Status.OK else row for row in rows)
        return Ledger(completed, self._stream.size, self._stream.sha256())


@contextlib.contextmanager
def _hashing_tar(path: Path) -> Iterator[_HashingTar]:
    with atomic_file(path) as stream:
        tar = _HashingTar(stream)
        try:
            yield tar
            tar.close()
        finally:
            tar.discard()


def _make_sample(planned: PlannedSample, config: ShardsConfig, decoder: Decoder) -> tuple[Sample, str]:
    video = planned.video
    if video.problem is not None:
        raise video.problem
    frames = config.frames
    decoded = decoder.decode(
        VideoRequest(
            path=str(_video_path(Path(config.videos), video.path)),
            start=video.start,
            end=video.end,
            fps=frames.fps,
            max_frames=frames.max_frames,
            short_side=frames.short_side,
            jpeg_quality=frames.jpeg_quality,
        )
    )
    return Sample(planned.key, decoded.frames, _metadata(video, decoded)), decoded.decoder


def _video_path(folder: Path, name: str) -> Path:
    try:
        return path_inside(folder, name)
    except DataError as error:
        raise SampleFailure(Status.BAD_PATH, f"path {name!r} leads out of the videos folder") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise SampleFailure(Status.BAD_PATH, f"path {name!r} cannot be a file: {type(error).__name__}") from error


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
        source=clean_text(video.path),
        extra=video.extra,
    )


def _summary(plan: ShardPlan, ledger: Ledger) -> ShardSummary:
    return ShardSummary(plan.name, plan.split, dict(sorted(ledger.statuses.items())), ledger.tar_bytes, ledger.tar_sha256)
