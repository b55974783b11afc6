"""What a decoding process is asked, and what it answers; imports no decoder."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VideoRequest:
    """Which frames of which file. Times are seconds from the first frame of the video.

    Attributes: as in `FramesConfig` and `AnnotatedVideo`, and
        skip_decord: PyAV only, because decord has broken its process with this video.
    """

    path: str
    start: float = 0.0
    end: float | None = None
    fps: float | None = 3.0
    max_frames: int | None = None
    short_side: int | None = 224
    jpeg_quality: int = 95
    jpeg_tables: str = "standard"
    skip_decord: bool = False


@dataclass(frozen=True)
class DecodedVideo:
    """The stored frames of a video.

    Attributes:
        frames: JPEG files, 4:4:4.
        frame_times: seconds from the first frame of the video.
        duration: of the segment, in seconds.
        fps: average frame rate of the source.
        width, height: of the stored frames, in pixels.
        decoder: which backend served, `decord` or `pyav`.
    """

    frames: list[bytes]
    frame_times: list[float]
    duration: float
    fps: float
    width: int
    height: int
    decoder: str
