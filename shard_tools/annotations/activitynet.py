"""ActivityNet Captions, as a paragraph a video: the captions of its events joined in order.

    train.json, val_1.json, val_2.json:
        {"v_QOlSCBRmfWY": {"duration": 82.73, "timestamps": [[0.83, 19.86], ...], "sentences": ["...", ...]}, ...}

val_2 describes videos of val_1 a second time, so an id may be in both. Video files are called
`v_<YouTube id>` or `<YouTube id>`.
"""

import itertools
from pathlib import Path

from dgl_scale.dataset_config import ActivityNetConfig
from dgl_scale.errors import DataError
from shard_tools.annotations.annotation_files import AnnotationFile, check_disjoint, read_json
from shard_tools.annotations.paragraph import Event, describe_paragraph
from shard_tools.annotations.video_files import VideoFiles
from shard_tools.annotations.videos import AnnotatedVideo


def read_activitynet(config: ActivityNetConfig, files: VideoFiles) -> list[AnnotatedVideo]:
    """The videos of all splits that the config names, in the order of their files; splits are called as the files are.

    Raises:
        DataError: a file is missing or malformed, or a training video is in val_1 or val_2.
    """
    splits = {split: _read_events(AnnotationFile(f"activitynet.{split}", Path(path[0]))) for split, path in config.files().items()}
    for split in ("val_1", "val_2"):
        check_disjoint({"train": splits.get("train", {}), split: splits.get(split, {})})
    return [
        describe_paragraph(name, files.find(name, name.removeprefix("v_")), events, config.caption_order, split)
        for split, members in splits.items()
        for name, events in members.items()
    ]


def _read_events(file: AnnotationFile) -> dict[str, list[Event]]:
    data = read_json(file)
    if not isinstance(data, dict) or not data:
        raise DataError(f"{file} must map video ids to duration, timestamps and sentences, got {type(data).__name__}")
    events: dict[str, list[Event]] = {}
    for name, record in data.items():
        for field in ("timestamps", "sentences"):
            if not isinstance(record, dict) or not isinstance(record.get(field), list):
                raise DataError(f"{file}: video {name!r} has no list {field!r}; is it a file of ActivityNet Captions?")
        # A caption without times, or times without a caption, is its own video's problem.
        pairs = itertools.zip_longest(record["sentences"], record["timestamps"])
        events[name] = [Event(sentence, [times]) for sentence, times in pairs]
    return events
