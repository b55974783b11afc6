"""DiDeMo, as a paragraph a video: the descriptions of its moments joined in order.

    train_data.json, val_data.json, test_data.json:
        [{"annotation_id": 1, "description": "...", "video": "12090392@N02_13482799053_87ef417396.mov",
          "times": [[0, 0], [0, 1], ...], "num_segments": 6, "download_link": "..."}, ...]

`times` are pieces of five seconds, a pair per annotator. The annotators saw the first 30 seconds of a video.
The id holds the suffix of the original file; the published downloader adds `.mp4` to it.
"""

import os
from pathlib import Path

from dgl_scale.dataset_config import DidemoConfig
from dgl_scale.errors import DataError
from shard_tools.annotations.annotation_files import AnnotationFile, check_disjoint, read_json
from shard_tools.annotations.paragraph import Event, describe_paragraph
from shard_tools.annotations.video_files import VideoFiles
from shard_tools.annotations.videos import AnnotatedVideo

_ANNOTATED_S = 30.0


def read_didemo(config: DidemoConfig, files: VideoFiles) -> list[AnnotatedVideo]:
    """The first 30 seconds of the videos of all splits that the config names, in order of first appearance.

    Raises:
        DataError: a file is missing or malformed, or a video is in two splits.
    """
    splits = {split: _read_events(AnnotationFile(f"didemo.{split}", Path(path[0]))) for split, path in config.files().items()}
    check_disjoint(splits)
    return [
        describe_paragraph(name, files.find(name, os.path.splitext(name)[0]), events, config.caption_order, split, _ANNOTATED_S)
        for split, members in splits.items()
        for name, events in members.items()
    ]


def _read_events(file: AnnotationFile) -> dict[str, list[Event]]:
    data = read_json(file)
    if not isinstance(data, list) or not data:
        raise DataError(f"{file} must be a list of moments with video, description and times, got {type(data).__name__}")
    events: dict[str, list[Event]] = {}
    for position, record in enumerate(data):
        if not isinstance(record, dict) or not isinstance(record.get("video"), str):
            raise DataError(f"{file}: moment {position} has no text 'video': {str(record)[:100]}")
        events.setdefault(record["video"], []).append(Event(record.get("description"), record.get("times")))
    return events
