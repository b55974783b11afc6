import os
from pathlib import Path

import pytest

from dgl_scale.errors import DataError
from shard_tools.annotations.folder import read_folder, video_files
from shard_tools.failures import Status


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_captions_splits_and_ids(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4")
    write(tmp_path / "a.txt", "one\n\n two\u2028half \r\n")
    write(tmp_path / "test" / "cats" / "b.webm")
    write(tmp_path / "test" / "cats" / "b.json", '{"captions": ["三"], "start": 1, "end": 2, "mood": "calm"}')
    write(tmp_path / "test" / "c.MKV")
    write(tmp_path / "test" / "c.json", '"just one"')
    a, c, b = read_folder(tmp_path, "train")
    assert (a.video_id, a.split, a.captions) == ("a", "train", ("one", "two\u2028half"))
    assert (b.video_id, b.split, b.captions, b.start, b.end, b.extra) == ("cats/b", "test", ("三",), 1.0, 2.0, {"mood": "calm"})
    assert (c.video_id, c.captions, c.path) == ("c", ("just one",), "test/c.MKV")


def test_bad_caption_files_cost_their_video_only(tmp_path: Path) -> None:
    for name in ("absent", "broken", "number", "binary", "segment", "good"):
        write(tmp_path / f"{name}.mp4")
    write(tmp_path / "broken.json", "{")
    write(tmp_path / "number.json", "[3]")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xff")
    write(tmp_path / "segment.json", '{"captions": "c", "start": 5, "end": 1}')
    write(tmp_path / "good.txt", "c")
    found = {video.video_id: video.problem and video.problem.status for video in read_folder(tmp_path, "train")}
    bad = Status.BAD_CAPTION
    assert found == {"absent": Status.NO_CAPTION, "broken": bad, "number": bad, "binary": bad, "segment": Status.BAD_SEGMENT, "good": None}


def test_one_name_with_two_suffixes_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4")
    write(tmp_path / "a.webm")
    with pytest.raises(DataError, match="two videos have the id 'a'"):
        read_folder(tmp_path, "train")


def test_a_folder_that_cannot_be_a_split_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "my videos" / "a.mp4")
    with pytest.raises(DataError, match="split 'my videos'"):
        read_folder(tmp_path, "train")


def test_no_folder_and_no_videos(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_folder(tmp_path / "none", "train")
    write(tmp_path / "a.txt")
    with pytest.raises(DataError, match="no videos in"):
        read_folder(tmp_path, "train")


def test_a_file_name_that_is_no_text_still_has_an_id(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.mp4", "wb"):
        pass
    (video,) = read_folder(tmp_path, "train")
    assert video.video_id == "\\udcff"


def test_hidden_files_and_other_files_are_left_out(tmp_path: Path) -> None:
    for name in (".a.mp4", ".cache/b.mp4", "c.jpg", "d.mp4"):
        write(tmp_path / name)
    assert list(video_files(tmp_path)) == ["d.mp4"]
