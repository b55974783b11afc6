import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgl_scale.dataset_config import VatexConfig
from dgl_scale.errors import DataError
from shard_tools.annotations.vatex import read_vatex
from shard_tools.annotations.video_files import VideoFiles
from shard_tools.annotations.videos import AnnotatedVideo

DASHED, UNDERSCORED, THIRD = "-Ptf_2VR-V0_000122_000132", "_a_b-c__d_9_000000_000010", "zzzzzzzzzzz_001000_001010"
FILES = VideoFiles([f"train/{DASHED}.mp4", f"val/{UNDERSCORED}.mkv"])


def clip(name: str, number: int = 2, **more: Any) -> dict[str, Any]:
    english, chinese = [f"{name} {i}" for i in range(number)], [f"第{i}" for i in range(number)]
    return {"videoID": name, "enCap": english, "chCap": chinese, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "training.json").write_text(json.dumps([clip(DASHED), clip(UNDERSCORED)]), encoding="utf-8")
    test = {key: value for key, value in clip(THIRD).items() if key != "chCap"}
    (tmp_path / "public_test_english.json").write_text(json.dumps([test]))
    return tmp_path


def read(folder: Path, files: VideoFiles = FILES, **config: Any) -> list[AnnotatedVideo]:
    paths = {key: str(folder / value) if key != "language" else value for key, value in config.items()}
    return read_vatex(VatexConfig(**paths), files)


def test_clip_ids_with_dashes_and_underscores(folder: Path) -> None:
    dashed, underscored, third = read(folder, train="training.json", test="public_test_english.json")
    assert (dashed.video_id, dashed.path, dashed.extra) == (DASHED, f"train/{DASHED}.mp4", {"source_video": "-Ptf_2VR-V0"})
    assert (underscored.path, underscored.extra["source_video"]) == (f"val/{UNDERSCORED}.mkv", "_a_b-c__d_9")
    assert (third.split, third.path, third.captions) == ("test", f"{THIRD}.mkv", (f"{THIRD} 0", f"{THIRD} 1"))
    assert all((video.start, video.end) == (0.0, None) for video in (dashed, underscored, third))


def test_of_a_whole_youtube_video_the_segment_is_taken(folder: Path) -> None:
    whole = VideoFiles(["-Ptf_2VR-V0.mp4", f"{UNDERSCORED}.mp4", "_a_b-c__d_9.mp4"])
    dashed, underscored = read(folder, whole, train="training.json")
    assert (dashed.path, dashed.start, dashed.end) == ("-Ptf_2VR-V0.mp4", 122.0, 132.0)
    assert (underscored.path, underscored.start, underscored.end) == (f"{UNDERSCORED}.mp4", 0.0, None)


@pytest.mark.parametrize(
    ("language", "captions"),
    [
        ("english", (f"{DASHED} 0", f"{DASHED} 1")),
        ("chinese", ("第0", "第1")),
        ("both", (f"{DASHED} 0", f"{DASHED} 1", "第0", "第1")),
    ],
)
def test_languages(folder: Path, language: str, captions: tuple[str, ...]) -> None:
    assert read(folder, train="training.json", language=language)[0].captions == captions


def test_a_split_without_chinese_captions_says_so(folder: Path) -> None:
    with pytest.raises(DataError, match=f"vatex.test: .* clip {THIRD} has no chCap; choose another vatex.language"):
        read(folder, test="public_test_english.json", language="chinese")


def test_splits_by_lists_of_ids(folder: Path) -> None:
    (folder / "train_list.txt").write_text(f"{UNDERSCORED}\n")
    (folder / "test_list.txt").write_text(f"{DASHED}\n")
    videos = read(folder, captions="training.json", train="train_list.txt", test="test_list.txt")
    assert [(video.video_id, video.split) for video in videos] == [(UNDERSCORED, "train"), (DASHED, "test")]
    (folder / "ref_captions.json").write_text(json.dumps({DASHED: ["one", "two"], UNDERSCORED: ["three"]}))
    videos = read(folder, captions="ref_captions.json", train="train_list.txt", test="test_list.txt")
    assert [video.captions for video in videos] == [("three",), ("one", "two")]
    (folder / "test_list.txt").write_text(f"{UNDERSCORED}\n")
    with pytest.raises(DataError, match="is in the files of split train and of split test"):
        read(folder, captions="training.json", train="train_list.txt", test="test_list.txt")


@pytest.mark.parametrize("kind", ["U", "S"])
def test_lists_as_numpy_arrays(folder: Path, kind: str) -> None:
    np.save(folder / "trn_names.npy", np.array([UNDERSCORED, DASHED], dtype=kind))
    assert [video.video_id for video in read(folder, captions="training.json", train="trn_names.npy")] == [UNDERSCORED, DASHED]
    np.save(folder / "trn_names.npy", np.array([UNDERSCORED, Path("x")], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"vatex.train: .*trn_names.npy is no NumPy array of texts; write it as a text file"):
        read(folder, captions="training.json", train="trn_names.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("3", "must be a list of clips"),
        ('[{"video": "x"}]', "clip 0 has no text videoID"),
        ('[{"videoID": "x_000001_000002"}]', "clip x_000001_000002 has no enCap"),
        ('[{"videoID"', "not valid JSON"),
    ],
)
def test_wrong_files(folder: Path, content: str, message: str) -> None:
    (folder / "training.json").write_text(content)
    with pytest.raises(DataError, match=f"vatex.train: .*{message}"):
        read(folder, train="training.json")


def test_an_id_of_another_form_is_a_clip_of_its_own(folder: Path) -> None:
    (folder / "training.json").write_text(json.dumps([clip("../x"), clip("a.b")]))
    odd, dotted = read(folder, VideoFiles(["c/a.b.mp4"]), train="training.json")
    assert (odd.path, dotted.path) == ("c/../x.mp4", "c/a.b.mp4")
