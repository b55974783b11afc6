import json
from pathlib import Path
from typing import Any

import pytest

from dgl_scale.dataset_config import ActivityNetConfig
from dgl_scale.errors import DataError
from shard_tools.annotations.activitynet import read_activitynet
from shard_tools.annotations.video_files import VideoFiles
from shard_tools.annotations.videos import AnnotatedVideo
from shard_tools.failures import Status

FILES = VideoFiles(["v_QOlSCBRmfWY.mp4", "nested/-abc_defghi.webm"])
EVENTS = {"duration": 82.7, "timestamps": [[40.0, 60.0], [0.8, 19.9], [17.4, 12.0]], "sentences": ["third", " first. ", "second"]}


def read(folder: Path, *, order: str = "time", **splits: Any) -> list[AnnotatedVideo]:
    for name, value in splits.items():
        (folder / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return read_activitynet(ActivityNetConfig(caption_order=order, **{name: str(folder / f"{name}.json") for name in splits}), FILES)


def test_the_captions_of_a_video_are_one_paragraph(tmp_path: Path) -> None:
    (video,) = read(tmp_path, train={"v_QOlSCBRmfWY": EVENTS})
    assert (video.video_id, video.path, video.split) == ("v_QOlSCBRmfWY", "v_QOlSCBRmfWY.mp4", "train")
    assert video.captions == ("first. second third",) and (video.start, video.end) == (0.0, None) and video.extra == {"num_events": 3}
    assert read(tmp_path, order="file", train={"v_QOlSCBRmfWY": EVENTS})[0].captions == ("third first. second",)


def test_equal_starts_are_ordered_by_end_and_then_as_given(tmp_path: Path) -> None:
    events = {"timestamps": [[0, 9], [0, 3], [0, 9]], "sentences": ["b", "a", "c"]}
    assert read(tmp_path, train={"v_x": events})[0].captions == ("a b c",)


def test_files_with_and_without_the_prefix(tmp_path: Path) -> None:
    videos = read(tmp_path, train={"v_-abc_defghi": EVENTS, "v_v_something": EVENTS})
    assert [video.path for video in videos] == ["nested/-abc_defghi.webm", "v_v_something.mp4"]


def test_val_2_describes_videos_of_val_1_again_but_train_is_apart(tmp_path: Path) -> None:
    videos = read(tmp_path, train={"v_a": EVENTS}, val_1={"v_b": EVENTS, "v_c": EVENTS}, val_2={"v_b": EVENTS})
    assert [(video.video_id, video.split) for video in videos] == [("v_a", "train"), ("v_b", "val_1"), ("v_c", "val_1"), ("v_b", "val_2")]
    with pytest.raises(DataError, match="'v_b' is in the files of split train and of split val_2"):
        read(tmp_path, train={"v_b": EVENTS}, val_1={"v_c": EVENTS}, val_2={"v_b": EVENTS})


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ({"timestamps": [[0, 1]], "sentences": ["a", "b"]}, Status.BAD_SEGMENT),
        ({"timestamps": [[0, 1], [1, 2]], "sentences": ["a"]}, Status.BAD_CAPTION),
        ({"timestamps": [[0]], "sentences": ["a"]}, Status.BAD_SEGMENT),
        ({"timestamps": [["x", 2]], "sentences": ["a"]}, Status.BAD_SEGMENT),
        ({"timestamps": [[0, float("nan")]], "sentences": ["a"]}, Status.BAD_SEGMENT),
        ({"timestamps": [[0, 1]], "sentences": [7]}, Status.BAD_CAPTION),
        ({"timestamps": [], "sentences": []}, Status.NO_CAPTION),
        ({"timestamps": [[0, 1]], "sentences": ["  "]}, Status.NO_CAPTION),
    ],
)
def test_a_malformed_event_costs_its_video_only(tmp_path: Path, events: dict[str, Any], status: Status) -> None:
    bad, good = read(tmp_path, train={"v_bad": events, "v_good": EVENTS})
    assert bad.problem is not None and bad.problem.status is status and good.problem is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must map video ids"),
        ("{}", "must map video ids"),
        ('{"v_a": {"sentences": []}}', "video 'v_a' has no list 'timestamps'"),
        ('{"v_a": {"timestamps": [', "not valid JSON"),
    ],
)
def test_wrong_files(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=f"activitynet.train: .*{message}"):
        read(tmp_path, train=content)
