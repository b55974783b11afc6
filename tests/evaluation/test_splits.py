"""What a split's build says of it, and which dataset it is of."""

import json
from pathlib import Path
from typing import Any

import pytest

from dgl_scale.config import RunConfig
from dgl_scale.data.index import load_split
from dgl_scale.data.location import RemoteShard, dataset_name
from dgl_scale.errors import ConfigError
from dgl_scale.evaluation.splits import absolute, build_facts, dataset_of, evaluated_split, open_split
from tests.evaluation.conftest import make_sample, write_split

COVERAGE = {"annotated": 5, "found": 4, "missing": 1, "failed": 1}


@pytest.fixture
def split(tmp_path: Path) -> Path:
    return write_split(tmp_path / "shards" / "test", [make_sample(i) for i in range(3)])


def write_records(folder: Path, samples: int) -> None:
    build = {"splits": {"test": {"samples": samples, "coverage": COVERAGE}, "train": {"samples": 9, "coverage": {}}}}
    leakage: dict[str, Any] = {
        "videos": {"test": samples, "train": 9},
        "video_pairs": [{"splits": ["test", "train"], "exact": 1, "near": 2}, {"splits": ["train", "train"], "exact": 3, "near": 0}],
        "captions": [{"of": "test", "also_in": "train", "captions": 4, "videos": 2}, {"of": "train", "also_in": "test", "captions": 9}],
    }
    (folder / "build.json").write_text(json.dumps(build))
    (folder / "leakage.json").write_text(json.dumps(leakage))


def test_coverage_and_leakage_are_those_of_the_split(split: Path) -> None:
    assert build_facts(str(split), 3) == {}
    write_records(split.parent, 3)
    facts = build_facts(str(split), 3)
    assert facts["coverage"] == COVERAGE
    assert facts["leakage"]["video_pairs"] == [{"splits": ["test", "train"], "exact": 1, "near": 2}]
    assert facts["leakage"]["captions"] == [{"of": "test", "also_in": "train", "captions": 4, "videos": 2}]


def test_records_of_other_shards_are_not_used(split: Path) -> None:
    write_records(split.parent, 4)
    assert build_facts(str(split), 3) == {}
    (split.parent / "build.json").write_text("no JSON")
    assert build_facts(str(split), 4).keys() == {"leakage"}


@pytest.mark.parametrize(
    ("shard", "dataset"),
    [
        ("msrvtt-9k-test-000000.tar", "msrvtt-9k"),
        (Path("/a-b/vatex-validation-000012-part3.tar"), "vatex"),
        (RemoteShard("s3://bucket/x-y/didemo-test-000000.tar", 1, ""), "didemo"),
        ("000000.tar", None),
    ],
)
def test_shards_tell_their_dataset(shard: Any, dataset: str | None) -> None:
    assert dataset_name(shard) == dataset


def test_dataset_of_a_folder(split: Path, tmp_path: Path) -> None:
    assert dataset_of(str(split)) == "tiny"
    assert dataset_of(str(tmp_path)) is None


def test_the_training_split_is_opened_without_what_is_excluded(tiny_config: RunConfig, split: Path, tmp_path: Path) -> None:
    (tmp_path / "exclude.txt").write_text("clip_01\n")
    data = tiny_config.data.model_copy(update={"train": str(split), "exclude": str(tmp_path / "exclude.txt")})
    config = tiny_config.model_copy(update={"data": data})
    assert open_split(config, str(split)).keys.tolist() == ["clip_00", "clip_02"]
    assert open_split(config, evaluated_split(config)).num_videos == load_split(str(data.test)).num_videos


def test_places_are_absolute(tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("x/y") == str(tmp_path.resolve() / "x" / "y")
    assert absolute("s3://bucket/x") == "s3://bucket/x"
    nothing = tiny_config.model_copy(update={"data": tiny_config.data.model_copy(update={"test": None})})
    with pytest.raises(ConfigError, match="data.test is missing"):
        evaluated_split(nothing)
