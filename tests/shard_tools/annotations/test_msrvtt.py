import json
from pathlib import Path
from typing import Any

import pytest

from dgl_scale.dataset_config import MsrvttConfig
from dgl_scale.errors import DataError
from shard_tools.annotations.msrvtt import read_msrvtt
from shard_tools.annotations.video_files import VideoFiles
from shard_tools.failures import Status

FILES = VideoFiles(["all/video0.mp4", "all/video1.webm", "old/video2.avi", "all/video3.mp4"])


def record(number: int, split: str, source: str = "") -> dict[str, Any]:
    url = f"https://www.youtube.com/watch?v={source or f'yt-{number}_x'}"
    return {"video_id": f"video{number}", "category": 3, "url": url, "start time": 137.7, "end time": 149.4, "split": split, "id": number}


def sentence(number: int, caption: Any, sen_id: int) -> dict[str, Any]:
    return {"caption": caption, "video_id": f"video{number}", "sen_id": sen_id}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = {
        "info": {"year": "2016"},
        "videos": [record(0, "train"), record(1, "train"), record(2, "validate"), record(3, "test")],
        "sentences": [
            sentence(0, "a man sings", 0),
            sentence(3, "a car", 60),
            sentence(1, "a dog runs", 20),
            sentence(0, "a man sings", 1),
            sentence(2, "two girls", 40),
            sentence(3, "a red car drives", 61),
        ],
    }
    (tmp_path / "data.json").write_text(json.dumps(data))
    (tmp_path / "9k.csv").write_text("video_id\nvideo2\nvideo0\nvideo1\nvideo0\n")
    (tmp_path / "1ka.csv").write_text("key,vid_key,video_id,sentence\nret0,msr3,video3,a car is shown\n")
    return tmp_path


def config(folder: Path, **changes: Any) -> MsrvttConfig:
    lists = {"train": str(folder / "9k.csv"), "test": str(folder / "1ka.csv")}
    return MsrvttConfig(**{"captions": str(folder / "data.json"), **lists, **changes})


def test_9k_trains_on_its_list_and_queries_with_the_sentence_of_the_csv(folder: Path) -> None:
    videos = read_msrvtt(config(folder), FILES)
    assert [(video.video_id, video.split, video.path) for video in videos] == [
        ("video2", "train", "old/video2.avi"),
        ("video0", "train", "all/video0.mp4"),
        ("video1", "train", "all/video1.webm"),
        ("video3", "test", "all/video3.mp4"),
    ]
    assert [video.captions for video in videos] == [("two girls",), ("a man sings", "a man sings"), ("a dog runs",), ("a car is shown",)]


def test_the_clips_are_cut_already_and_know_their_source(folder: Path) -> None:
    for video in read_msrvtt(config(folder), FILES):
        assert (video.start, video.end) == (0.0, None)
        assert video.extra["source_video"] == f"yt-{video.video_id[-1]}_x"
        assert video.extra["start time"] == 137.7 and video.extra["category"] == 3


def test_the_full_split_is_that_of_the_json_with_all_captions(folder: Path) -> None:
    videos = read_msrvtt(MsrvttConfig(split="full", captions=str(folder / "data.json")), FILES)
    assert [(video.video_id, video.split) for video in videos] == [
        ("video0", "train"),
        ("video1", "train"),
        ("video2", "validation"),
        ("video3", "test"),
    ]
    assert videos[3].captions == ("a car", "a red car drives")


def test_official_files_and_the_joint_one_give_the_same(folder: Path) -> None:
    data = json.loads((folder / "data.json").read_text())
    for name, splits in (("train_val.json", {"train", "validate"}), ("test.json", {"test"})):
        ids = {record["video_id"] for record in data["videos"] if record["split"] in splits}
        part = {key: [row for row in data[key] if row["video_id"] in ids] for key in ("videos", "sentences")}
        (folder / name).write_text(json.dumps(part))
    expected = read_msrvtt(config(folder), FILES)
    for names in (["train_val.json", "test.json"], ["data.json", "test.json"]):
        assert read_msrvtt(config(folder, captions=[str(folder / name) for name in names]), FILES) == expected


def test_odd_encodings_of_the_csv(folder: Path) -> None:
    expected = "café “Ritz”"
    for encoding in ("utf-8", "utf-8-sig", "cp1252", "utf-16"):
        (folder / "1ka.csv").write_bytes(f"key,vid_key,video_id,sentence\r\nret0,msr3,video3,{expected}\r\n".encode(encoding))
        assert read_msrvtt(config(folder), FILES)[-1].captions == (expected,)


def test_a_caption_that_is_missing_or_no_text_costs_its_video_only(folder: Path) -> None:
    data = json.loads((folder / "data.json").read_text())
    data["sentences"] = [sentence(0, "fine", 0), sentence(1, 5, 1)]
    (folder / "data.json").write_text(json.dumps(data))
    found = {video.video_id: video.problem and video.problem.status for video in read_msrvtt(config(folder), FILES)}
    assert found == {"video0": None, "video1": Status.BAD_CAPTION, "video2": Status.NO_CAPTION, "video3": None}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("9k.csv", "id\nvideo0\n", "msrvtt.train: .*9k.csv has no column 'video_id'; it has id"),
        ("9k.csv", "video_id\nvideo3\n", "video 'video3' is in the files of split train and of split test"),
        ("9k.csv", "video_id\nvideo77\n", "none of its 1 ids .* is in msrvtt.captions"),
        ("9k.csv", "", "msrvtt.train: .*9k.csv is empty"),
        ("1ka.csv", "video_id\nvideo3\n", "msrvtt.test: .*1ka.csv has no column 'sentence'"),
        ("1ka.csv", "key,vid_key,video_id,sentence\nret0,msr3,video3\n", "row 1 has another number of cells"),
        ("1ka.csv", "key,vid_key,video_id,sentence\nret0,msr3,video3,a man, a plan\n", "row 1 has another number of cells"),
        ("1ka.csv", "key,vid_key,video_id,sentence\n", "1ka.csv has no rows"),
        ("data.json", '{"videos": [', "msrvtt.captions: .*data.json is not valid JSON.*cut off"),
        ("data.json", "[]", "has no list 'videos'"),
        ("data.json", '{"videos": [], "sentences": [{"caption": "x"}]}', r"sentences\[0\] has no text video_id"),
        ("data.json", "\0\0", "data.json is no text"),
    ],
)
def test_wrong_files_are_one_line_with_key_and_place(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        read_msrvtt(config(folder), FILES)
    assert "\n" not in str(error.value)


def test_an_unknown_split_is_refused(folder: Path) -> None:
    (folder / "data.json").write_text(json.dumps({"videos": [record(0, "val")], "sentences": []}))
    with pytest.raises(DataError, match="'video0' has the split 'val'; known: train, validate, test"):
        read_msrvtt(MsrvttConfig(split="full", captions=str(folder / "data.json")), FILES)
