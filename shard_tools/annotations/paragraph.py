"""Paragraph retrieval: the captions of a video's events as one caption."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from shard_tools.annotations.videos import AnnotatedVideo, describe_video, parse_captions
from shard_tools.failures import SampleFailure, Status


@dataclass(frozen=True)
class Event:
    """A caption of part of a video, as annotated; values are checked by `describe_paragraph`.

    Attributes:
        times: pairs of start and end, one of each annotator, in any unit that the events of a video share.
    """

    caption: Any
    times: Any


def describe_paragraph(
    video_id: str, path: str, events: list[Event], order: Literal["time", "file"], split: str, end: float | None = None
) -> AnnotatedVideo:
    """A video whose one caption is those of its events, joined by spaces.

    Args:
        order: by mean start, then mean end, then as given; or as given.
        end: of the video, in seconds; None is its own.
    """
    place = f"video {video_id!r}"
    extra = {"num_events": len(events)}
    try:
        parse_captions([event.caption for event in events], place)
        if order == "time":
            events = sorted(events, key=lambda event: _mean_times(event.times, place))
    except SampleFailure as failure:
        return AnnotatedVideo(video_id, path, (), split, 0.0, end, extra, failure)
    captions = [event.caption.strip() for event in events]
    return describe_video(video_id, path, " ".join(caption for caption in captions if caption), split, end=end, extra=extra)


def _mean_times(pairs: Any, place: str) -> tuple[float, float]:
    try:
        # Some annotated pairs are the wrong way round.
        ordered = [sorted((float(start), float(end))) for start, end in pairs]
        start, end = (math.fsum(pair[side] for pair in ordered) / len(ordered) for side in (0, 1))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise SampleFailure(Status.BAD_SEGMENT, f"{place}: {pairs!r} are no pairs of start and end") from error
    if not math.isfinite(start) or not math.isfinite(end):
        raise SampleFailure(Status.BAD_SEGMENT, f"{place}: {pairs!r} are no pairs of start and end")
    return start, end
