import json
import os
from pathlib import Path

import pytest

from dgl_scale.dataset_config import LsmdcConfig
from dgl_scale.errors import DataError
from dgl_scale.shards_config import ColumnsConfig, ShardsConfig
from shard_tools.annotations.reader import read_annotations
from shard_tools.build import main

LINES = "".join(f"00{i}_Film_00.0{i}\t1\t2\t3\t4\tcaption {i}\n" for i in range(1, 5))


@pytest.fixture
def config(tmp_path: Path) -> ShardsConfig:
    (tmp_path / "train.csv").write_text(LINES)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "001_Film_00.01.avi").touch()
    return ShardsConfig(
        dataset="lsmdc", format="lsmdc", lsmdc=LsmdcConfig(train=str(tmp_path / "train.csv")), videos=str(tmp_path / "videos"), output="out"
    )


def test_the_validation_split_is_held_out(config: ShardsConfig) -> None:
    videos = list(read_annotations(config.model_copy(update={"validation_videos": 1})))
    assert sorted(video.split for video in videos) == ["train", "train", "train", "validation"]
    videos = list(read_annotations(config.model_copy(update={"validation_fraction": 0.5, "validation_seed": 1})))
    assert {video.split for video in videos} == {"train", "validation"}


def test_a_folder_without_any_annotated_video_stops_the_build(config: ShardsConfig) -> None:
    os.rename(Path(config.videos) / "001_Film_00.01.avi", Path(config.videos) / "other.avi")
    with pytest.raises(
        DataError, match=r"has none of the 4 annotated videos \(such as 001_Film_00.01\); it holds 1 video files, such as other.avi"
    ):
        read_annotations(config)
    os.remove(Path(config.videos) / "other.avi")
    with pytest.raises(DataError, match="it holds no video files"):
        read_annotations(config)


def test_a_table_of_urls_needs_no_folder(tmp_path: Path) -> None:
    table = tmp_path / "t.jsonl"
    table.write_text(json.dumps({"path": "https://example.net/a.mp4", "captions": "c"}) + "\n")
    config = ShardsConfig(
        dataset="d", format="table", annotations=str(table), videos=str(tmp_path / "no"), output="o", columns=ColumnsConfig()
    )
    assert next(iter(read_annotations(config))).path == "https://example.net/a.mp4"
    table.write_text(table.read_text() + json.dumps({"path": "b.mp4", "captions": "c"}) + "\n")
    with pytest.raises(DataError, match=r"videos folder .*/no does not exist; videos=PATH says where it is"):
        list(read_annotations(config))


@pytest.mark.parametrize(
    ("name", "key", "file"),
    [
        ("msrvtt", "msrvtt.captions", "MSRVTT_data.json"),
        ("msvd", "msvd.captions", "raw-captions.pkl"),
        ("vatex", "vatex.captions", "vatex_training_v1.0.json"),
        ("lsmdc", "lsmdc.train", "LSMDC16_annos_training.csv"),
        ("activitynet", "activitynet.train", "train.json"),
        ("didemo", "didemo.train", "train_data.json"),
        ("webvid", "annotations", "results_2M_train.csv"),
    ],
)
def test_a_shipped_config_without_its_files_names_the_first_in_one_line(
    name: str, key: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--config", f"configs/shards/{name}.yaml"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("output folder")]
    assert line.startswith("error: ") and key in line and f"{tmp_path}/data/{name}/{file}" in line
    assert not (tmp_path / "shards").exists()
