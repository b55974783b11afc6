"""What every annotation reader yields: videos with captions, checked value by value.

A malformed value costs its own video (`problem`); an annotation that is malformed as a whole, or
names two videos by one id, stops the build before any work (DataError).
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dgl_scale.errors import DataError
from shard_tools.failures import SampleFailure, Status

VIDEO_SUFFIXES = frozenset([".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"])
_SPLIT = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True)
class AnnotatedVideo:
    """A video as its dataset describes it.

    Attributes:
        path: as annotated, relative to the videos folder.
        captions: without surrounding white space, none empty.
        start: where the segment begins, in seconds.
        end: where it ends; None is the end of the video.
        extra: other annotated values (JSON).
        problem: why it cannot become a sample, found while reading the annotation.
    """

    video_id: str
    path: str
    captions: tuple[str, ...]
    split: str
    start: float = 0.0
    end: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    problem: SampleFailure | None = None


def describe_video(
    video_id: str,
    path: str,
    captions: Any,
    split: str,
    *,
    start: Any = None,
    end: Any = None,
    extra: dict[str, Any] | None = None,
) -> AnnotatedVideo:
    """A video of a published dataset; values that are malformed make it a video with a problem."""
    place = f"video {video_id!r}"
    texts: tuple[str, ...] = ()
    first, last, problem = 0.0, None, None
    try:
        texts = parse_captions(captions, place)
        first, last = parse_segment(start, end, place)
    except SampleFailure as failure:
        problem = failure
    video = AnnotatedVideo(clean_text(video_id), path, texts, split, first, last, json_values(extra or {}), problem)
    return _with_captions(video, texts)


def check_split(name: str, where: str) -> str:
    """`name`, if it can be a folder and part of a file name.

    Raises:
        DataError: any other character than ASCII letters, digits, `_` and `-`.
    """
    if not _SPLIT.fullmatch(name):
        raise DataError(f"{where}: split {name!r} may hold only ASCII letters, digits, '_' and '-'")
    return name


def parse_captions(value: Any, where: str) -> tuple[str, ...]:
    """The captions in an annotated value: a text, a list of texts, or nothing. Empty ones are dropped.

    Raises:
        SampleFailure: `bad_caption`, for anything that is no text.
    """
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    for position, caption in enumerate(values):
        if not isinstance(caption, str):
            raise SampleFailure(Status.BAD_CAPTION, f"{where}: caption {position} is {type(caption).__name__}, not text: {caption!r}")
        if not is_unicode(caption):
            raise SampleFailure(Status.BAD_CAPTION, f"{where}: caption {position} holds half a character (a lone surrogate): {caption!r}")
    return tuple(caption.strip() for caption in values if caption.strip())


def parse_segment(start: Any, end: Any, where: str) -> tuple[float, float | None]:
    """Start and end in seconds; nothing (None or an empty text) means beginning and end of the video.

    Raises:
        SampleFailure: `bad_segment`.
    """
    first = _seconds(start, where)
    last = _seconds(end, where)
    if last is not None and last <= (first or 0.0):
        raise SampleFailure(Status.BAD_SEGMENT, f"{where}: the segment ends at {last} s, not after its start at {first or 0.0} s")
    return first or 0.0, last


def join_rows(videos: Iterable[AnnotatedVideo]) -> list[AnnotatedVideo]:
    """One entry per video, in order of first appearance; captions of repeated rows are joined in order.

    `extra` is that of the first row. A row with a problem makes the whole video one.

    Raises:
        DataError: one id names two files, segments or splits.
    """
    joined: dict[str, AnnotatedVideo] = {}
    captions: dict[str, list[str]] = {}
    for video in videos:
        first = joined.setdefault(video.video_id, video)
        captions.setdefault(video.video_id, []).extend(video.captions)
        if first is video:
            continue
        _check_same(first, video)
        if first.problem is None and video.problem is not None:
            joined[video.video_id] = video
    return [_with_captions(video, tuple(captions[video.video_id])) for video in joined.values()]


def json_values(row: dict[str, Any]) -> dict[str, Any]:
    """The items of `row` that JSON can hold; empty ones, dates, bytes and NaN are left out."""
    return {key: value for key, value in row.items() if value is not None and _is_json(value)}


def clean_text(text: str) -> str:
    """`text` with bytes that are no UTF-8 (as in odd file names) written as escapes."""
    return text if is_unicode(text) else text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _seconds(value: Any, where: str) -> float | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if isinstance(value, bool) or not math.isfinite(seconds) or seconds < 0:
        raise SampleFailure(Status.BAD_SEGMENT, f"{where}: {value!r} is no time in seconds")
    return seconds


def _check_same(first: AnnotatedVideo, other: AnnotatedVideo) -> None:
    for name in ("path", "split", "start", "end"):
        if getattr(first, name) != getattr(other, name) and other.problem is None and first.problem is None:
            raise DataError(
                f"two videos have the id {first.video_id!r}: {name} {getattr(first, name)!r} and {getattr(other, name)!r}; "
                "ids must be unique over all splits (columns.video_id chooses the column)"
            )


def _with_captions(video: AnnotatedVideo, captions: tuple[str, ...]) -> AnnotatedVideo:
    problem = video.problem
    if problem is None and not captions:
        problem = SampleFailure(Status.NO_CAPTION, "the video has no caption, or only empty ones")
    return AnnotatedVideo(video.video_id, video.path, captions, video.split, video.start, video.end, video.extra, problem)


def _is_json(value: Any) -> bool:
    try:
        return is_unicode(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError):
        return False
