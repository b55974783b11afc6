"""What FFmpeg's libraries are asked: the times of a file's frames, and their pixels. The door of decord and PyAV.

Both backends give the same bytes: they scale and convert with the same filter, `scale` with bicubic weights.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import decord
import numpy as np

from shard_tools.failures import SampleFailure, Status

# A file declares its size and its frames in a few bytes, and decoders believe it. No camera gives more than these:
# 2^27 pixels are four times 8K; ten million frames are 46 hours at 60 a second. 65,500 is JPEG's own limit.
MAX_PIXELS = 2**27
MAX_SIDE = 65_500
MAX_SOURCE_FRAMES = 10_000_000
_BATCH_FRAMES = 16
_BATCH_BYTES = 64 * 2**20
# decord counts the frames that it replaced by a neighbour; any is too many. (A share of the video, above 0.)
_DECORD_FAULT_TOLERANCE = 1e-6
# decord's own times are float32; those of a file that it misunderstands are wrong by much more.
_DECORD_TIME_TOLERANCE_S = 5e-3


@dataclass(frozen=True)
class VideoSource:
    """A video as its container describes it, every packet seen, nothing decoded but the first frame.

    Attributes:
        times: [N] float64, ascending, when each frame appears, in seconds from the first.
        stop: end of the last frame, in seconds from the first.
        fps: average frame rate.
        width, height: in pixels, before rotation.
        rotation: quarter turns, counterclockwise, that make frames upright.
        declared_frames: as the container says, 0 if it does not.
        declared_seconds: of the video stream; None if the container does not say.
        stamps: [N] ascending presentation stamps; None where the container has them wrong (AVI with
            frames out of order), so that frames are known by their place only.
    """

    times: np.ndarray
    stop: float
    fps: float
    width: int
    height: int
    rotation: int
    declared_frames: int
    declared_seconds: float | None
    stamps: tuple[int, ...] | None


ReadFrames = Callable[[str, VideoSource, tuple[int, int], Sequence[int]], Iterator[np.ndarray]]
"""(path, source, (width, height) of upright frames, ascending indices) -> frames [height, width, 3] uint8 RGB."""


def open_source(path: str) -> VideoSource:
    """Read the times of all frames of a file's best video stream.

    Raises:
        SampleFailure: unreadable, empty, or too_large for what it declares.
        MemoryError: it does not fit into the memory limit.
    """
    try:
        with av.open(path) as container:
            stream = container.streams.best("video")
            # The cover picture of a song is a video stream of one frame.
            if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
                kinds = ", ".join(sorted({other.type for other in container.streams if other is not stream}))
                raise SampleFailure(Status.UNREADABLE, "the file has no video stream" + (f", only {kinds}" if kinds else ""))
            stream.thread_count = 1
            _check_declared(stream)
            return _source(container, stream)
    except MemoryError:
        raise
    except av.FFmpegError as error:
        raise SampleFailure(Status.UNREADABLE, f"not a readable video: {error.strerror}") from error


def check_size(width: int, height: int) -> None:
    """Refuse a frame that no memory should be spent on.

    Raises:
        SampleFailure: too_large.
    """
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        limit = f"more than {MAX_PIXELS:,} pixels or {MAX_SIDE:,} on a side"
        raise SampleFailure(Status.TOO_LARGE, f"frames of {width:,} x {height:,} pixels; {limit} is no video")


def read_with_decord(path: str, source: VideoSource, size: tuple[int, int], indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Frames by decord, in the form of `ReadFrames`.

    Raises:
        Exception: whatever decord raises, and ValueError for what it is known to get wrong.
    """
    if source.rotation:
        raise ValueError("decord misplaces the rows of rotated frames")
    width, height = size
    reader = decord.VideoReader(path, num_threads=1, fault_tol=_DECORD_FAULT_TOLERANCE, width=width, height=height)
    spans = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)
    if len(spans) != len(source.times) or np.abs(spans[:, 0] - spans[0, 0] - source.times).max() > _DECORD_TIME_TOLERANCE_S:
        raise ValueError("decord sees other frames than the container has")
    at_once = max(1, min(_BATCH_FRAMES, _BATCH_BYTES // (3 * width * height)))
    for start in range(0, len(indices), at_once):
        yield from reader.get_batch(indices[start : start + at_once]).asnumpy()


def read_with_av(path: str, source: VideoSource, size: tuple[int, int], indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Frames by PyAV, in the form of `ReadFrames`.

    Raises:
        av.FFmpegError: a frame cannot be decoded.
        SampleFailure: truncated, where the file ends before the last of `indices`.
    """
    wanted = set(indices)
    places = None if source.stamps is None else {stamp: place for place, stamp in enumerate(source.stamps)}
    with av.open(path) as container:
        stream = container.streams.best("video")
        stream.thread_count = 1
        convert = _Converter(size if source.rotation % 2 == 0 else size[::-1])
        for number, frame in enumerate(container.decode(stream)):
            place = number if places is None or frame.pts is None else places.get(frame.pts)
            if place in wanted:
                wanted.remove(place)
                yield np.ascontiguousarray(np.rot90(convert(frame), source.rotation))
            if not wanted:
                return
    raise SampleFailure(Status.TRUNCATED, f"{len(wanted)} of {len(indices)} frames cannot be decoded")


def quiet_decoders() -> None:
    """Keep FFmpeg's complaints about broken files out of the process's output."""
    decord.logging.set_level(decord.logging.QUIET)
    av.logging.set_level(av.logging.PANIC)
    # With PyAV's own callback, a log line from a decoder thread can wait for the interpreter lock for ever.
    av.logging.restore_default_callback()


def _check_declared(stream: Any) -> None:
    if min(stream.width, stream.height) < 1:
        raise SampleFailure(Status.UNREADABLE, "the video has no size; its header or first frame is damaged")
    check_size(stream.width, stream.height)
    if stream.frames > MAX_SOURCE_FRAMES:
        raise SampleFailure(Status.TOO_LARGE, f"the file declares {stream.frames:,} frames; more than {MAX_SOURCE_FRAMES:,} are no video")


def _source(container: Any, stream: Any) -> VideoSource:
    stamps: list[int] = []
    rotation: int | None = None
    last, last_duration = None, 0
    for packet in container.demux(stream):
        if rotation is None:
            rotation = _rotation(packet)
        # What an edit list cuts away is in the file, and in no frame.
        if packet.pts is None or not packet.size or packet.is_discard:
            continue
        stamps.append(packet.pts)
        if len(stamps) > MAX_SOURCE_FRAMES:
            raise SampleFailure(Status.TOO_LARGE, f"more than {MAX_SOURCE_FRAMES:,} frames are no video")
        if last is None or packet.pts > last:
            last, last_duration = packet.pts, packet.duration or 0
    if not stamps:
        raise SampleFailure(Status.EMPTY, "the video has no frames, or no times of frames")
    reordered_unmarked = bool(stream.codec_context.has_b_frames) and all(a < b for a, b in itertools.pairwise(stamps))
    stamps.sort()
    seconds = stream.time_base
    times = (np.asarray(stamps, dtype=np.float64) - stamps[0]) * float(seconds)
    fps = float(stream.average_rate or 0) or _average_rate(times, last_duration * seconds)
    return VideoSource(
        times=times,
        stop=float(times[-1]) + (float(last_duration * seconds) or 1 / fps),
        fps=fps,
        width=stream.width,
        height=stream.height,
        rotation=rotation or 0,
        declared_frames=stream.frames,
        declared_seconds=_declared_seconds(container, stream),
        stamps=None if reordered_unmarked else tuple(stamps),
    )


def _rotation(packet: Any) -> int | None:
    """Quarter turns of the frame that this packet completes, None if it completes none."""
    # Only a decoded frame tells. Damage is for the real decoding to find.
    try:
        for frame in packet.decode():
            check_size(frame.width, frame.height)
            return round(int(frame.rotation) / 90) % 4
    except MemoryError:
        raise
    except av.FFmpegError:
        pass
    return None


def _average_rate(times: np.ndarray, last_duration: Fraction) -> float:
    if times[-1] > 0:
        return float((len(times) - 1) / times[-1])
    return float(1 / last_duration) if last_duration > 0 else 1.0


def _declared_seconds(container: Any, stream: Any) -> float | None:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    # Where only the container tells a duration, it is the video's if nothing else is in there.
    alone = len(container.streams) == 1 and container.duration is not None
    return container.duration / av.time_base if alone else None


class _Converter:
    """Decoded frames to [height, width, 3] RGB of one (width, height), whatever their own size and format."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._made_for: tuple[int, int, str] | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        kind = (frame.width, frame.height, frame.format.name)
        if kind != self._made_for:
            check_size(frame.width, frame.height)
            self._graph = _scaling_graph(*kind, frame.time_base, self._size)
            self._made_for = kind
        self._graph.push(frame)
        converted: np.ndarray = self._graph.pull().to_ndarray()
        return converted


def _scaling_graph(width: int, height: int, pixels: str, time_base: Fraction, size: tuple[int, int]) -> Any:
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=pixels, time_base=time_base)
    graph.link_nodes(source, graph.add("scale", f"{size[0]}:{size[1]}"), graph.add("format", "rgb24"), graph.add("buffersink")).configure()
    return graph
