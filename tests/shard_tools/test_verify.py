import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgl_scale.shards_config import ColumnsConfig, ShardsConfig
from shard_tools.annotations.table import read_table
from shard_tools.failures import Status
from shard_tools.ledger import LedgerRow, read_ledger
from shard_tools.verify import main, verify
from tests.shard_tools.finished_build import finish_build


@pytest.fixture(scope="module")
def finished(videos_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished build of two shards."""
    output = tmp_path_factory.mktemp("finished")
    table = str(videos_folder / "annotations.jsonl")
    config = ShardsConfig(dataset="toy", format="table", annotations=table, videos=str(videos_folder), output=str(output))
    videos = read_table(Path(table), ColumnsConfig(video_id="id", split="split"), "train")
    return finish_build(videos, config, 100)


@pytest.fixture
def build(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "build"))


def good_rows(build: Path) -> list[LedgerRow]:
    return [row for row in read_ledger(build / "train" / "toy-train-000000.parquet").rows if row.status is Status.OK]


def test_a_sound_build(build: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(build)]) == 0
    assert capsys.readouterr().out == "2 shards, 12 samples as written, 9 failed rows\n"


@settings(max_examples=25, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_found_and_its_sample_named(finished: Path, position: float, bit: int) -> None:
    tar = finished / "train" / "toy-train-000000.tar"
    sound = tar.read_bytes()
    damaged = bytearray(sound)
    offset = int(position * len(sound))
    damaged[offset] ^= 1 << bit
    try:
        tar.write_bytes(damaged)
        problems = verify(finished).problems
    finally:
        tar.write_bytes(sound)
    assert len(problems) in {1, 2} and all("train/toy-train-000000.tar" in problem for problem in problems)
    inside = [row.key for row in good_rows(finished) if 0 <= offset - (row.offset or 0) < (row.size or 0)]
    assert [key for key in inside if f"sample {key} " in problems[0]] == inside


def test_the_command_names_the_damage_and_ends_with_1(build: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = good_rows(build)[3]
    tar = build / "train" / "toy-train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[(row.offset or 0) + 600] ^= 1
    tar.write_bytes(content)
    assert main([str(build)]) == 1
    error = capsys.readouterr().err
    assert f"train/toy-train-000000.tar: the bytes of sample {row.key}" in error and "error: 1 problems" in error


def test_missing_strange_and_cut_files(build: Path) -> None:
    train, test = build / "train", build / "test"
    (train / "toy-train-000000.tar").write_bytes((train / "toy-train-000000.tar").read_bytes()[:3000])
    (test / "toy-test-000000.parquet").unlink()
    (test / "toy-test-000007.tar").touch()
    problems = verify(build).problems
    assert any("train/toy-train-000000.tar: the bytes of sample" in problem for problem in problems)
    assert any("toy-test-000000.parquet is no ledger" in problem for problem in problems)
    assert "test/toy-test-000007.tar belongs to no shard of the build" in problems
    (train / "toy-train-000000.tar").unlink()
    assert "train/toy-train-000000.tar is missing" in verify(build).problems


def test_lists_that_lie(build: Path) -> None:
    path = build / "train" / "index.json"
    index = json.loads(path.read_text())
    entry = index["shardlist"][0]
    lies = {"sha256": ("0" * 64, "index.json says"), "nsamples": (3, "index.json says 3 samples"), "filesize": (1, "index.json says 1 and")}
    for key, (value, message) in lies.items():
        path.write_text(json.dumps({"shardlist": [{**entry, key: value}]}))
        assert len(verify(build).problems) == 1 and message in verify(build).problems[0]
    path.write_text(json.dumps({"shardlist": [entry, {**entry, "url": "toy-train-000001.tar"}]}))
    assert verify(build).problems == ("train/index.json lists toy-train-000001.tar, which the build does not have",)
    path.write_text(json.dumps({"shardlist": []}))
    assert verify(build).problems == ("train/toy-train-000000.tar is not listed in index.json",)


def test_what_is_no_finished_build(build: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 1
    record = json.loads((build / "build.json").read_text())
    (build / "build.json").write_text(json.dumps({**record, "status": "building"}))
    assert main([str(build)]) == 1
    assert "is not complete" in capsys.readouterr().err
