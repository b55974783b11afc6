import json
from pathlib import Path
from typing import Any

import pytest

from dgl_scale.dataset_config import DidemoConfig
from dgl_scale.errors import DataError
from shard_tools.annotations.didemo import read_didemo
from shard_tools.annotations.video_files import VideoFiles
from shard_tools.annotations.videos import AnnotatedVideo
from shard_tools.failures import Status

ONE, TWO, THREE = "12090392@N02_13482799053_87ef417396.mov", "9999@N00_1_aa.avi", "8888@N00_2_bb.3gp"
FILES = VideoFiles([ONE, f"{TWO}.mp4", "8888@N00_2_bb.mp4"])


def moment(video: str, description: Any, times: Any) -> dict[str, Any]:
    return {"annotation_id": 1, "video": video, "description": description, "times": times, "num_segments": 6, "download_link": "http://x"}


def read(folder: Path, moments: Any, order: str = "file") -> list[AnnotatedVideo]:
    (folder / "train_data.json").write_text(moments if isinstance(moments, str) else json.dumps(moments))
    return read_didemo(DidemoConfig(train=str(folder / "train_data.json"), caption_order=order), FILES)


def test_moments_become_a_paragraph_of_the_first_thirty_seconds(tmp_path: Path) -> None:
    moments = [
        moment(ONE, "late ", [[4, 5], [5, 5]]),
        moment(TWO, "only", [[0, 0]]),
        moment(ONE, "early", [[0, 0], [0, 1], [1, 1]]),
        moment(ONE, "middle", [[1, 1], [0, 5], [1, 1]]),
    ]
    one, two = read(tmp_path, moments)
    assert (one.video_id, one.split, one.captions, one.start, one.end) == (ONE, "train", ("late early middle",), 0.0, 30.0)
    assert one.extra == {"num_events": 3} and two.captions == ("only",)
    assert read(tmp_path, moments, order="time")[0].captions == ("early middle late",)


def test_files_under_the_original_name_a_new_suffix_or_both(tmp_path: Path) -> None:
    videos = read(tmp_path, [moment(name, "a", [[0, 0]]) for name in (ONE, TWO, THREE)])
    assert [video.path for video in videos] == [ONE, f"{TWO}.mp4", "8888@N00_2_bb.mp4"]


@pytest.mark.parametrize("times", [None, [], [[0]], "soon", [[0, None]]])
def test_malformed_times_cost_their_video_where_they_matter(tmp_path: Path, times: Any) -> None:
    moments = [moment(ONE, "a", times), moment(TWO, "b", [[0, 0]])]
    bad, good = read(tmp_path, moments, order="time")
    assert bad.problem is not None and bad.problem.status is Status.BAD_SEGMENT and good.problem is None
    assert read(tmp_path, moments)[0].captions == ("a",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "must be a list of moments"),
        ("[]", "must be a list of moments"),
        ("[{}]", "moment 0 has no text 'video'"),
        ("[", "not valid JSON"),
    ],
)
def test_wrong_files(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=f"didemo.train: .*{message}"):
        read(tmp_path, content)
