"""MSR-VTT: 10,000 clips with 20 captions each; the 9k and 7k training lists, the 1k-A test csv, the full split.

    MSRVTT_data.json, or train_val_videodatainfo.json and test_videodatainfo.json:
        {"videos": [{"video_id": "video0", "category": 9, "url": "https://www.youtube.com/watch?v=9lZi22qLlEo",
                     "start time": 137.72, "end time": 149.44, "split": "train", "id": 0}, ...],
         "sentences": [{"video_id": "video0", "caption": "...", "sen_id": 0}, ...]}
    MSRVTT_train.9k.csv, MSRVTT_train.7k.csv: a column video_id
    MSRVTT_JSFUSION_test.csv: key, vid_key, video_id, sentence

The times are those of the clip in its YouTube video: the published clips are cut already.
"""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from dgl_scale.dataset_config import MsrvttConfig
from dgl_scale.errors import DataError
from shard_tools.annotations.annotation_files import AnnotationFile, check_disjoint, check_known, read_csv, read_ids, read_json
from shard_tools.annotations.video_files import VideoFiles
from shard_tools.annotations.videos import AnnotatedVideo, describe_video

_FULL_SPLITS = {"train": "train", "validate": "validation", "test": "test"}
_Captions = dict[str, list[Any]]


def read_msrvtt(config: MsrvttConfig, files: VideoFiles) -> list[AnnotatedVideo]:
    """The videos of the chosen split, in the order of its lists.

    A 1k-A test video has one caption, the csv's sentence; any other has all its captions.

    Raises:
        DataError: a file is missing or malformed, or a video is in two splits.
    """
    records: dict[str, dict[str, Any]] = {}
    captions: _Captions = {}
    for name in config.captions:
        _read_captions(AnnotationFile("msrvtt.captions", Path(name)), records, captions)
    splits = _full_split(records, captions) if config.split == "full" else _listed_split(config, captions)
    check_disjoint(splits)
    return [
        describe_video(name, files.find(name), texts, split, extra=_extra(records.get(name, {})))
        for split, members in splits.items()
        for name, texts in members.items()
    ]


def _read_captions(file: AnnotationFile, records: dict[str, dict[str, Any]], captions: _Captions) -> None:
    data = read_json(file)
    for part in ("videos", "sentences"):
        if not isinstance(data, dict) or not isinstance(data.get(part), list):
            raise DataError(f"{file} has no list {part!r}; MSR-VTT's JSON has videos and sentences")
        for position, record in enumerate(data[part]):
            if not isinstance(record, dict) or not isinstance(record.get("video_id"), str):
                raise DataError(f"{file}: {part}[{position}] has no text video_id: {str(record)[:100]}")
    records.update({record["video_id"]: record for record in data["videos"]})
    seen = set()
    for sentence in data["sentences"]:
        # A sentence listed twice is one; the same words under another number are another caption, as published.
        number = (sentence["video_id"], sentence.get("sen_id"), str(sentence.get("caption")))
        if sentence.get("sen_id") is None or number not in seen:
            captions.setdefault(sentence["video_id"], []).append(sentence.get("caption"))
        seen.add(number)


def _listed_split(config: MsrvttConfig, captions: _Captions) -> dict[str, _Captions]:
    train_file = AnnotationFile("msrvtt.train", Path(str(config.train)))
    train = read_ids(train_file)
    check_known(train, captions, train_file, "msrvtt.captions")
    test: _Captions = {}
    for row in read_csv(AnnotationFile("msrvtt.test", Path(str(config.test))), ["video_id", "sentence"]):
        test.setdefault(row["video_id"].strip(), []).append(row["sentence"])
    return {"train": {name: captions.get(name, []) for name in train}, "test": test}


def _full_split(records: dict[str, dict[str, Any]], captions: _Captions) -> dict[str, _Captions]:
    splits: dict[str, _Captions] = {split: {} for split in _FULL_SPLITS.values()}
    for name, record in records.items():
        if record.get("split") not in _FULL_SPLITS:
            raise DataError(f"msrvtt.captions: video {name!r} has the split {record.get('split')!r}; known: {', '.join(_FULL_SPLITS)}")
        splits[_FULL_SPLITS[record["split"]]][name] = captions.get(name, [])
    return splits


def _extra(record: dict[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in record.items() if key not in {"video_id", "id", "split"}}
    url = record.get("url")
    if isinstance(url, str):
        values["source_video"] = parse_qs(urlsplit(url).query).get("v", [url])[0]
    return values
