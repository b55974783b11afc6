"""Videos from a folder: each with its captions in a file of the same name beside it.

    videos/train/cats/001.mp4      id cats/001, split train
    videos/train/cats/001.txt      a caption a line
    videos/test/002.webm           id 002, split test
    videos/test/002.json           a text, a list of texts, or {"captions": [...], "start": 1.5, "end": 9.0, ...}
    videos/003.mp4                 id 003, the default split

The first folder below the root is the split. With both caption files, the JSON one counts.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dgl_scale.errors import DataError
from shard_tools.annotations.videos import (
    VIDEO_SUFFIXES,
    AnnotatedVideo,
    check_split,
    clean_text,
    join_rows,
    json_values,
    parse_captions,
    parse_segment,
)
from shard_tools.failures import SampleFailure, Status


def read_folder(folder: Path, default_split: str) -> list[AnnotatedVideo]:
    """The videos below `folder`, ordered by path.

    Raises:
        DataError: no such folder, no videos in it, or two videos of one id (`a.mp4` and `a.webm`).
    """
    if not folder.is_dir():
        raise DataError(f"videos folder {folder} does not exist")
    videos = join_rows(_video(folder, path, default_split) for path in sorted(video_files(folder)))
    if not videos:
        raise DataError(f"no videos in {folder}; known suffixes: {' '.join(sorted(VIDEO_SUFFIXES))}")
    return videos


def video_files(folder: Path) -> Iterator[str]:
    """Paths below `folder`, relative to it, of the files that look like videos; hidden ones are left out."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
                yield os.path.relpath(os.path.join(parent, name), folder)


def _video(folder: Path, path: str, default_split: str) -> AnnotatedVideo:
    first, separator, rest = path.partition("/")
    split = check_split(first, f"folder {folder / first}") if separator else default_split
    video_id = clean_text(os.path.splitext(rest if separator else path)[0])
    captions: tuple[str, ...] = ()
    start, end, problem = 0.0, None, None
    extra: dict[str, Any] = {}
    try:
        described = _read_captions(folder / path)
        extra = json_values({key: value for key, value in described.items() if key not in {"captions", "start", "end"}})
        captions = parse_captions(described.get("captions"), "caption file")
        start, end = parse_segment(described.get("start"), described.get("end"), "caption file")
    except SampleFailure as failure:
        problem = failure
    return AnnotatedVideo(video_id, path, captions, split, start, end, extra, problem)


def _read_captions(video: Path) -> dict[str, Any]:
    for suffix in (".json", ".txt"):
        try:
            text = video.with_suffix(suffix).read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise SampleFailure(Status.BAD_CAPTION, f"cannot read the {suffix} caption file: {_reason(error)}") from error
        return {"captions": text.split("\n")} if suffix == ".txt" else _parse_json(text)
    return {}


def _parse_json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SampleFailure(Status.BAD_CAPTION, f"the caption file is not valid JSON: {error}") from error
    return value if isinstance(value, dict) else {"captions": value}


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.reason if isinstance(error, UnicodeDecodeError) else error.strerror or str(error)
