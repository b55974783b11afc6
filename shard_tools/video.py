"""One video file to JPEG frames: which frames, how large, and why not.

Runs inside a decoding process (decoder.py), because a broken video can hang or crash a decoder.
"""

import io
import os
from pathlib import Path

import av
import numpy as np
import simplejpeg

from dgl_scale.data.samples import MAX_FRAMES
from shard_tools.backends import ReadFrames, VideoSource, check_size, open_source, read_with_av, read_with_decord
from shard_tools.failures import SampleFailure, Status, one_line
from shard_tools.video_request import DecodedVideo, VideoRequest

_TIME_TOLERANCE_S = 1e-3
_END_TOLERANCE_S = 0.1
# Full colour resolution: frames are small, are resized again by readers, and small coloured things matter.
_CHROMA = "444"
_FULL_CHROMA = 0
_FLAT_STEP = 50
# A decoder holds about this much: eight 4:2:0 frames for reference and reordering, and one in RGB.
_DECODER_BYTES_PER_PIXEL = 15


def decode_video(request: VideoRequest) -> DecodedVideo:
    """Decode with decord, and with PyAV where decord fails.

    Raises:
        SampleFailure: missing, unreadable, truncated, empty or too_large.
        MemoryError: it does not fit into the memory limit.
    """
    _check_file(Path(request.path))
    source = open_source(request.path)
    _check_whole(source)
    chosen = choose_frames(source.times, source.stop, request)
    if not chosen:
        raise SampleFailure(Status.EMPTY, f"the segment starts at {request.start:g} s, the video ends at {source.stop:g} s")
    if len(chosen) > MAX_FRAMES:
        raise SampleFailure(Status.TOO_LARGE, f"{len(chosen)} frames, more than {MAX_FRAMES}; lower frames.fps or set frames.max_frames")
    size = stored_size(source, request.short_side)
    check_size(*size)
    decoder, frames = _read(source, size, chosen, request)
    end = source.stop if request.end is None else min(request.end, source.stop)
    times = [round(float(source.times[index]), 6) for index in chosen]
    return DecodedVideo(frames, times, round(end - request.start, 6), round(source.fps, 6), *size, decoder)


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
        # By frame and not by tick: a file may claim a duration of centuries, its frames are counted.
        first_tick = np.maximum(np.ceil((times - request.start - _TIME_TOLERANCE_S) * request.fps), 0)
        first_tick[0] = 0
        end_tick = max(np.ceil((end - request.start - _TIME_TOLERANCE_S) * request.fps), 1)
        chosen = np.flatnonzero(first_tick < np.append(np.minimum(first_tick[1:], end_tick), end_tick))
    if request.max_frames is not None and len(chosen) > request.max_frames:
        chosen = chosen[_spread(len(chosen), request.max_frames)]
    return [int(index) for index in chosen]


def _check_file(path: Path) -> None:
    if not path.exists():
        raise SampleFailure(Status.MISSING, "no such file in the videos folder")
    if not path.is_file():
        raise SampleFailure(Status.UNREADABLE, "not a regular file")
    if not os.access(path, os.R_OK):
        raise SampleFailure(Status.UNREADABLE, "permission denied")
    if path.stat().st_size == 0:
        raise SampleFailure(Status.EMPTY, "the file has zero bytes")


def _check_whole(source: VideoSource) -> None:
    # Fewer frames alone may be an edit list, an early end alone a wrong duration; together they are a cut file.
    if source.declared_seconds is None or 0 < source.declared_frames <= len(source.times):
        return
    if source.stop < source.declared_seconds - _END_TOLERANCE_S - 2 / max(source.fps, 1.0):
        of_frames = f" of {source.declared_frames}" if source.declared_frames else ""
        seconds = f"{source.stop:.2f} of {source.declared_seconds:.2f} s"
        raise SampleFailure(Status.TRUNCATED, f"the file ends after {len(source.times)}{of_frames} frames, {seconds}")


def stored_size(source: VideoSource, short_side: int | None) -> tuple[int, int]:
    """(width, height) of the upright frames with a shorter side of `short_side` pixels, aspect kept."""
    width, height = (source.width, source.height) if source.rotation % 2 == 0 else (source.height, source.width)
    if short_side is None:
        return width, height
    scale = short_side / min(width, height)
    return (short_side if width <= height else round(width * scale), short_side if height <= width else round(height * scale))


def encode_frame(frame: np.ndarray, quality: int, tables: str) -> bytes:
    """A JPEG file of full colour resolution.

    Args:
        frame: [height, width, 3] uint8 RGB, contiguous.
        quality: 1 to 100.
        tables: `standard` or `flat`, as `FramesConfig.jpeg_tables`.
    """
    if tables == "standard":
        content: bytes = simplejpeg.encode_jpeg(frame, quality, "RGB", _CHROMA, fastdct=False)
        return content
    # Only Pillow takes other tables; most builds do not need it.
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", qtables=[[_flat_step(quality)] * 64] * 2, subsampling=_FULL_CHROMA)
    return file.getvalue()


def _flat_step(quality: int) -> int:
    # libjpeg scales its tables like this: 50 is as they are, 100 is none.
    percent = 5000 / quality if quality < 50 else 200 - 2 * quality
    return min(max(round(_FLAT_STEP * percent / 100), 1), 255)


def _read(source: VideoSource, size: tuple[int, int], chosen: list[int], request: VideoRequest) -> tuple[str, list[bytes]]:
    """The backend that served, and the frames."""
    if not request.skip_decord:
        try:
            return "decord", _encode(read_with_decord, source, size, chosen, request)
        except (SampleFailure, MemoryError):
            raise
        except Exception:  # noqa: S110
            # decord raises whatever its C++ side meets; the second backend decides whether the video is readable.
            pass
    return "pyav", _encode_with_av(source, size, chosen, request)


def _encode(read: ReadFrames, source: VideoSource, size: tuple[int, int], chosen: list[int], request: VideoRequest) -> list[bytes]:
    return [encode_frame(frame, request.jpeg_quality, request.jpeg_tables) for frame in read(request.path, source, size, chosen)]


def _encode_with_av(source: VideoSource, size: tuple[int, int], chosen: list[int], request: VideoRequest) -> list[bytes]:
    try:
        return _encode(read_with_av, source, size, chosen, request)
    except MemoryError:
        raise
    except av.FFmpegError as error:
        # FFmpeg calls a frame for which it had no memory "invalid data".
        np.empty(_DECODER_BYTES_PER_PIXEL * source.width * source.height, np.uint8)
        raise SampleFailure(Status.UNREADABLE, f"the video cannot be decoded: {error.strerror}") from error


def _spread(length: int, count: int) -> list[int]:
    """`count` positions in 0 .. length - 1, evenly spaced, both ends included (the middle, if one)."""
    if count == 1:
        return [length // 2]
    return [(2 * i * (length - 1) + count - 1) // (2 * (count - 1)) for i in range(count)]


def failure_of(error: Exception) -> SampleFailure:
    """Any exception of `decode_video` as the failure of one video."""
    if isinstance(error, SampleFailure):
        return error
    if isinstance(error, MemoryError):
        return SampleFailure(Status.TOO_LARGE, "decoding needs more memory than decoder.memory_limit_gib")
    return SampleFailure(Status.UNREADABLE, f"cannot be decoded: {type(error).__name__}: {one_line(str(error))}")
