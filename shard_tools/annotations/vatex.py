"""VATEX: ten-second clips of YouTube videos with ten English and ten Chinese captions.

    vatex_training_v1.0.json, vatex_validation_v1.0.json:  [{"videoID": "Ptf_2VRj-V0_000122_000132",
                                                             "enCap": [...], "chCap": [...]}, ...]
    vatex_public_test_english_v1.1.json:                   the same with enCap only
    ref_captions.json of later work:                       {"Ptf_2VRj-V0_000122_000132": [...], ...}

A clip id is `<YouTube id>_<start>_<end>` in seconds, and a YouTube id may hold `-` and `_`. A file named
after the clip is the clip; a file named after the YouTube video alone is the whole video, and the segment is taken.
"""

import re
from pathlib import Path
from typing import Any

from dgl_scale.dataset_config import VatexConfig
from dgl_scale.errors import DataError
from shard_tools.annotations.annotation_files import AnnotationFile, check_disjoint, check_known, read_ids, read_json
from shard_tools.annotations.video_files import VideoFiles
from shard_tools.annotations.videos import AnnotatedVideo, describe_video

_CLIP_ID = re.compile(r"(?P<source>.+)_(?P<start>\d+)_(?P<end>\d+)", re.ASCII)
_FIELDS = {"english": ("enCap",), "chinese": ("chCap",), "both": ("enCap", "chCap")}
_Captions = dict[str, list[Any]]


def read_vatex(config: VatexConfig, files: VideoFiles) -> list[AnnotatedVideo]:
    """The videos of all splits that the config names, in the order of their files.

    Raises:
        DataError: a file is missing or malformed, lacks the chosen language, or a video is in two splits.
    """
    fields = _FIELDS[config.language]
    pool: _Captions = {}
    for name in config.captions:
        pool.update(_read_captions(AnnotationFile("vatex.captions", Path(name)), fields))
    splits: dict[str, _Captions] = {}
    for split in config.split_keys:
        if path := config.files().get(split):
            file = AnnotationFile(f"vatex.{split}", Path(path[0]))
            splits[split] = _read_captions(file, fields) if file.path.suffix == ".json" else _listed(file, pool)
    check_disjoint(splits)
    return [_video(name, texts, split, files) for split, members in splits.items() for name, texts in members.items()]


def _listed(file: AnnotationFile, pool: _Captions) -> _Captions:
    ids = read_ids(file)
    check_known(ids, pool, file, "vatex.captions")
    return {name: pool.get(name, []) for name in ids}


def _read_captions(file: AnnotationFile, fields: tuple[str, ...]) -> _Captions:
    data = read_json(file)
    if isinstance(data, dict):
        return {name: texts if isinstance(texts, list) else [texts] for name, texts in data.items()}
    if not isinstance(data, list):
        raise DataError(f"{file} must be a list of clips with videoID, enCap and chCap, got {type(data).__name__}")
    captions: _Captions = {}
    for position, record in enumerate(data):
        if not isinstance(record, dict) or not isinstance(record.get("videoID"), str):
            raise DataError(f"{file}: clip {position} has no text videoID: {str(record)[:100]}")
        absent = [field for field in fields if field not in record]
        if absent:
            raise DataError(f"{file}: clip {record['videoID']} has no {absent[0]}; choose another vatex.language, or leave this split out")
        texts = [record[field] for field in fields]
        captions[record["videoID"]] = [text for value in texts for text in (value if isinstance(value, list) else [value])]
    return captions


def _video(name: str, texts: list[Any], split: str, files: VideoFiles) -> AnnotatedVideo:
    match = _CLIP_ID.fullmatch(name)
    if match is None:
        return describe_video(name, files.find(name), texts, split)
    extra = {"source_video": match["source"]}
    whole = files.get(match["source"]) if files.get(name) is None else None
    if whole is not None:
        return describe_video(name, whole, texts, split, start=match["start"], end=match["end"], extra=extra)
    return describe_video(name, files.find(name), texts, split, extra=extra)
