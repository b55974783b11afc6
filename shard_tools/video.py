"""One video file to JPEG frames: which frames, how large, and why not. The door of decord and PyAV.

Runs inside a decoding process (decoder.py), because a broken video can hang or crash a decoder.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import decord
import numpy as np
import simplejpeg
from PIL import Image

from dgl_scale.data.samples import MAX_FRAMES
from shard_tools.failures import SampleFailure, Status, one_line
from shard_tools.video_request import DecodedVideo, VideoRequest

_BATCH_FRAMES = 16
_TIME_TOLERANCE_S = 1e-3
_END_TOLERANCE_S = 0.1
# decord counts the frames that it replaced by a neighbour; any is too many. (A share of the video, above 0.)
_DECORD_FAULT_TOLERANCE = 1e-6
# Full colour resolution: frames are small, are resized again by readers, and small coloured things matter.
_CHROMA = "444"


def decode_video(request: VideoRequest) -> DecodedVideo:
    """Decode with decord, and with PyAV where decord fails.

    Raises:
        SampleFailure: missing, unreadable, truncated, empty or too_large.
    """
    _check_file(Path(request.path))
    declared = _declared(request.path)
    try:
        return _decode(_DecordReader(request.path), declared, request)
    except (SampleFailure, MemoryError):
        raise
    except Exception:
        # decord raises whatever its C++ side meets; the second backend decides whether the video is readable.
        return _decode_with_av(declared, request)


def choose_frames(times: np.ndarray, stop: float, request: VideoRequest) -> list[int]:
    """Indices, ascending and distinct, of the frames to store.

    With `fps`, the frames on display at start, start + 1/fps, ... before the segment's end; without,
    all frames of the segment. Of more than `max_frames`, so many evenly spaced ones, first and last included.

    Args:
        times: [N] float64, ascending, when each frame appears, in seconds.
        stop: end of the last frame, in seconds.
        request: its segment, fps and max_frames.

    Returns:
        Empty if the segment begins after the video's end.
    """
    end = stop if request.end is None else min(request.end, stop)
    if request.start >= end:
        return []
    if request.fps is None:
        first = max(int(np.searchsorted(times, request.start + _TIME_TOLERANCE_S, side="right")) - 1, 0)
        chosen = np.arange(first, max(int(np.searchsorted(times, end - _TIME_TOLERANCE_S)), first + 1))
    else:
        count = max(math.ceil((end - request.start - _TIME_TOLERANCE_S) * request.fps), 1)
        ticks = request.start + np.arange(count) / request.fps
        chosen = np.unique(np.maximum(np.searchsorted(times, ticks + _TIME_TOLERANCE_S, side="right") - 1, 0))
    if request.max_frames is not None and len(chosen) > request.max_frames:
        chosen = chosen[_spread(len(chosen), request.max_frames)]
    return [int(index) for index in chosen]


class _Reader(Protocol):
    """A file opened by one of the decoders: times [N] float64 and stop in seconds, average fps."""

    times: np.ndarray
    stop: float
    fps: float

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Frames [H, W, 3] uint8 RGB at ascending indices."""
        ...


class _DecordReader:
    def __init__(self, path: str) -> None:
        self._reader = decord.VideoReader(path, num_threads=1, fault_tol=_DECORD_FAULT_TOLERANCE)
        spans = np.asarray(self._reader.get_frame_timestamp(range(len(self._reader))), dtype=np.float64)
        self.times = spans[:, 0] - spans[0, 0]
        self.stop = float(spans[-1, 1] - spans[0, 0])
        self.fps = float(self._reader.get_avg_fps())
        if not np.isfinite([*self.times, self.stop, self.fps]).all() or (np.diff(self.times) < 0).any():
            raise ValueError("frame times are not finite and ascending")

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        for start in range(0, len(indices), _BATCH_FRAMES):
            yield from self._reader.get_batch(indices[start : start + _BATCH_FRAMES]).asnumpy()


class _AvReader:
    def __init__(self, container: Any) -> None:
        self._container = container
        self._stream = container.streams.video[0]
        self._stream.thread_count = 1
        stamps = sorted(packet.pts for packet in container.demux(self._stream) if packet.pts is not None and packet.size)
        if not stamps:
            raise SampleFailure(Status.EMPTY, "the video has no frames")
        self._stamps = stamps
        self.times = (np.asarray(stamps, dtype=np.float64) - stamps[0]) * float(self._stream.time_base)
        self.fps = float(self._stream.average_rate or 0) or (len(stamps) - 1) / max(float(self.times[-1]), _TIME_TOLERANCE_S) or 1.0
        self.stop = float(self.times[-1]) + 1 / self.fps

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        wanted = {self._stamps[index] for index in indices}
        self._container.seek(self._stamps[0], stream=self._stream)
        for frame in self._container.decode(self._stream):
            if frame.pts in wanted:
                wanted.remove(frame.pts)
                yield frame.to_ndarray(format="rgb24")
            if not wanted:
                return
        raise SampleFailure(Status.TRUNCATED, f"{len(wanted)} of {len(indices)} frames cannot be decoded")


@dataclass(frozen=True)
class _Declared:
    """What the container says of its video: frames (0 if it does not say) and seconds."""

    frames: int
    seconds: float | None


def _check_file(path: Path) -> None:
    if not path.exists():
        raise SampleFailure(Status.MISSING, "no such file in the videos folder")
    if not path.is_file():
        raise SampleFailure(Status.UNREADABLE, "not a regular file")
    if not os.access(path, os.R_OK):
        raise SampleFailure(Status.UNREADABLE, "permission denied")
    if path.stat().st_size == 0:
        raise SampleFailure(Status.EMPTY, "the file has zero bytes")


def _declared(path: str) -> _Declared:
    try:
        with av.open(path) as container:
            if not container.streams.video:
                kinds = ", ".join(sorted({stream.type for stream in container.streams}))
                raise SampleFailure(Status.UNREADABLE, "the file has no video stream" + (f", only {kinds}" if kinds else ""))
            stream = container.streams.video[0]
            if stream.duration is not None and stream.time_base is not None:
                return _Declared(stream.frames, float(stream.duration * stream.time_base))
            # Where only the container tells a duration, it is the video's if nothing else is in there.
            alone = len(container.streams) == 1 and container.duration is not None
            return _Declared(stream.frames, container.duration / 1e6 if alone else None)
    except av.FFmpegError as error:
        raise SampleFailure(Status.UNREADABLE, f"not a readable video: {error.strerror}") from error


def _decode_with_av(declared: _Declared, request: VideoRequest) -> DecodedVideo:
    try:
        with av.open(request.path) as container:
            return _decode(_AvReader(container), declared, request)
    except av.FFmpegError as error:
        raise SampleFailure(Status.UNREADABLE, f"the video cannot be decoded: {error.strerror}") from error


def _decode(reader: _Reader, declared: _Declared, request: VideoRequest) -> DecodedVideo:
    _check_whole(reader, declared)
    chosen = choose_frames(reader.times, reader.stop, request)
    if not chosen:
        raise SampleFailure(Status.EMPTY, f"the segment starts at {request.start:g} s, the video ends at {reader.stop:g} s")
    if len(chosen) > MAX_FRAMES:
        raise SampleFailure(Status.TOO_LARGE, f"{len(chosen)} frames, more than {MAX_FRAMES}; lower frames.fps or set frames.max_frames")
    frames: list[bytes] = []
    height = width = 0
    for frame in reader.read(chosen):
        resized = _resize(frame, request.short_side)
        height, width = resized.shape[:2]
        frames.append(simplejpeg.encode_jpeg(resized, request.jpeg_quality, "RGB", _CHROMA, fastdct=False))
    end = reader.stop if request.end is None else min(request.end, reader.stop)
    times = [round(float(reader.times[index]), 6) for index in chosen]
    return DecodedVideo(frames, times, round(end - request.start, 6), round(reader.fps, 6), width, height)


def _check_whole(reader: _Reader, declared: _Declared) -> None:
    # Fewer frames alone may be an edit list, an early end alone a wrong duration; together they are a cut file.
    if declared.seconds is None or 0 < declared.frames <= len(reader.times):
        return
    if reader.stop < declared.seconds - _END_TOLERANCE_S - 2 / max(reader.fps, 1.0):
        of_frames = f" of {declared.frames}" if declared.frames else ""
        raise SampleFailure(
            Status.TRUNCATED, f"the file ends after {len(reader.times)}{of_frames} frames, {reader.stop:.2f} of {declared.seconds:.2f} s"
        )


def _resize(frame: np.ndarray, short_side: int | None) -> np.ndarray:
    """[H, W, 3] to a shorter side of `short_side` pixels, bicubic with antialiasing, aspect kept."""
    height, width = frame.shape[:2]
    if short_side is None or min(height, width) == short_side:
        return np.ascontiguousarray(frame)
    scale = short_side / min(height, width)
    size = (short_side if width <= height else round(width * scale), short_side if height <= width else round(height * scale))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))


def _spread(length: int, count: int) -> list[int]:
    """`count` positions in 0 .. length - 1, evenly spaced, both ends included (the middle, if one)."""
    if count == 1:
        return [length // 2]
    return [(2 * i * (length - 1) + count - 1) // (2 * (count - 1)) for i in range(count)]


def quiet_decoders() -> None:
    """Keep FFmpeg's complaints about broken files out of the process's output."""
    decord.logging.set_level(decord.logging.QUIET)
    av.logging.set_level(av.logging.PANIC)
    # With PyAV's own callback, a log line from a decoder thread can wait for the interpreter lock for ever.
    av.logging.restore_default_callback()


def failure_of(error: Exception) -> SampleFailure:
    """Any exception of `decode_video` as the failure of one video."""
    if isinstance(error, SampleFailure):
        return error
    if isinstance(error, MemoryError):
        return SampleFailure(Status.TOO_LARGE, "decoding needs more memory than decoder.memory_limit_gib")
    return SampleFailure(Status.UNREADABLE, f"cannot be decoded: {type(error).__name__}: {one_line(str(error))}")
