import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import shard_tools
from dgl_scale.shards_config import ShardsConfig
from shard_tools.build import main
from shard_tools.ledger import read_ledger
from shard_tools.verify import verify


@pytest.fixture
def config_file(shards_config: ShardsConfig, tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(shards_config.model_dump(mode="json")))
    return str(path)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(config_file: str, *overrides: str) -> int:
    return main(["--config", config_file, *overrides])


def test_a_build_gives_shards_lists_and_record(
    config_file: str, tmp_path: Path, without_ray: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config_file) == 0
    reasons = "4 bad_path, 1 empty, 1 missing, 1 no_caption, 1 truncated, 1 unreadable"
    assert f"3 shards, 12 samples, 9 failed ({reasons})" in capsys.readouterr().out
    assert sorted(files(tmp_path / "shards")) == [
        "build.json",
        *(f"test/{name}" for name in ("index.json", "sizes.json", "toy-test-000000.parquet", "toy-test-000000.tar")),
        *(f"train/{name}" for name in ("index.json", "sizes.json")),
        *(f"train/toy-train-00000{i}.{suffix}" for i in range(2) for suffix in ("parquet", "tar")),
    ]
    record = json.loads((tmp_path / "shards" / "build.json").read_text())
    assert record["status"] == "complete"
    assert record["coverage"] == {"annotated": 21, "found": 20, "missing": 1, "failed": 8, "extra": 1}
    assert record["splits"]["test"] == {**record["splits"]["test"], "shards": 1, "samples": 3, "failed": 0}
    index = json.loads((tmp_path / "shards" / "train" / "index.json").read_text())
    sizes = json.loads((tmp_path / "shards" / "train" / "sizes.json").read_text())
    assert {entry["url"]: entry["nsamples"] for entry in index["shardlist"]} == sizes and sum(sizes.values()) == 9
    assert index["wids_version"] == 1


def test_a_second_run_does_only_what_is_missing(config_file: str, tmp_path: Path, without_ray: list[str]) -> None:
    assert run(config_file) == 0
    before = files(tmp_path / "shards")
    without_ray.clear()
    assert run(config_file) == 0
    assert without_ray == []
    (tmp_path / "shards" / "train" / "toy-train-000001.parquet").unlink()
    (tmp_path / "shards" / "test" / "toy-test-000000.tar").unlink()
    (tmp_path / "shards" / "train" / ".toy-train-000001.tar.abc.tmp").touch()
    assert run(config_file) == 0
    assert without_ray == ["toy-test-000000", "toy-train-000001"]
    assert files(tmp_path / "shards") == before


def test_another_config_is_refused_by_the_name_of_its_key(
    config_file: str, tmp_path: Path, without_ray: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config_file) == 0
    before = files(tmp_path / "shards")
    assert run(config_file, "frames.fps=2", "max_samples_per_shard=7") == 2
    error = capsys.readouterr().err
    assert "frames.fps was 3.0, now 2.0; max_samples_per_shard was 10, now 7" in error and error.count("\n") == 1
    neutral = ("cpus_per_task=2", "max_tasks_in_flight=1", "decoder.timeout_s=9", "max_failed_fraction=0.9")
    assert run(config_file, *neutral) == 0
    assert files(tmp_path / "shards") == before


def test_changed_annotations_are_refused(
    config_file: str, shards_config: ShardsConfig, tmp_path: Path, without_ray: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "a.jsonl"
    table.write_text(Path(str(shards_config.annotations)).read_text())
    assert run(config_file, f"annotations={table}") == 0
    table.write_text(table.read_text().replace("clip 1", "another caption"))
    assert run(config_file, f"annotations={table}") == 2
    assert "the annotations have changed" in capsys.readouterr().err


def test_too_many_failures_end_with_1_and_keep_the_good(
    config_file: str, tmp_path: Path, without_ray: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config_file, "max_failed_fraction=0.4") == 1
    assert "9 of 21 videos failed" in capsys.readouterr().err
    assert json.loads((tmp_path / "shards" / "build.json").read_text())["status"] == "too_many_failed"
    assert (tmp_path / "shards" / "train" / "index.json").exists()
    without_ray.clear()
    assert run(config_file, "max_failed_fraction=0.5") == 0 and without_ray == []


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["frames.fsp=3"], 2, "unknown key frames.fsp; did you mean fps?"),
        (["frames.fps=-1"], 2, "frames.fps"),
        (["annotations=/no/such.jsonl"], 1, "cannot read annotations /no/such.jsonl"),
        (["videos=/no/such"], 1, "videos folder /no/such does not exist"),
        (["storage.scratch=/no/such"], 1, "cannot use the scratch folder: No such file or directory; set storage.scratch"),
        (["columns.caption=text"], 1, "no column 'text'; it has id, path, captions, split"),
        (["splits=[val]"], 2, "no video of split 'val'; the annotations have test, train"),
        (["output=/dev/null/x"], 1, "cannot write /dev/null/x"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    config_file: str,
    tmp_path: Path,
    without_ray: list[str],
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    code: int,
    message: str,
) -> None:
    assert run(config_file, *overrides) == code
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "shards").exists()


def test_two_videos_of_one_id_stop_the_build_before_any_work(config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "a.jsonl"
    table.write_text("".join(json.dumps({"id": "x", "path": f"{i}.mp4", "captions": "c", "split": "train"}) + "\n" for i in range(2)))
    assert run(config_file, f"annotations={table}") == 1
    assert "two videos have the id 'x'" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


def test_one_builder_at_a_time(config_file: str, tmp_path: Path, without_ray: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shards").mkdir()
    descriptor = os.open(tmp_path / "shards", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert run(config_file) == 1
    finally:
        os.close(descriptor)
    assert "another build is writing" in capsys.readouterr().err
    assert run(config_file) == 0


def test_retrying_gives_the_bytes_of_a_build_without_the_failures(
    config_file: str, videos_folder: Path, clip: Path, tmp_path: Path, without_ray: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "videos", tmp_path / "shards"
    shutil.copytree(videos_folder, folder, symlinks=True)
    arguments = (f"videos={folder}", f"annotations={folder}/annotations.jsonl")
    assert run(config_file, *arguments) == 0
    untouched = (output / "test" / "toy-test-000000.tar").stat().st_ino
    for name in ("text.mp4", "none.mp4", "cut.mp4"):
        shutil.copy(clip, folder / name)
    assert run(config_file, *arguments, f"output={tmp_path / 'fresh'}") == 0
    for path in (folder / "good").iterdir():
        path.write_text("what is good already is not decoded again")
    without_ray.clear()
    capsys.readouterr()
    assert run(config_file, *arguments, "--retry-failed") == 0
    assert without_ray == ["toy-train-000000", "toy-train-000001"]
    error = capsys.readouterr().err
    assert "3 of 9 failed videos are samples now" in error
    assert {name for line in error.splitlines() if "rewritten" in line for name in line.partition("with ")[2].split(", ")} == {
        "bad text.mp4",
        "bad none.mp4",
        "bad cut.mp4",
    }
    assert files(output) == files(tmp_path / "fresh")
    assert (output / "test" / "toy-test-000000.tar").stat().st_ino == untouched
    before = {path: path.stat().st_ino for path in output.glob("*/*.tar")}
    assert run(config_file, *arguments, "--retry-failed") == 0
    assert "0 of 6 failed videos are samples now" in capsys.readouterr().err
    assert {path: path.stat().st_ino for path in output.glob("*/*.tar")} == before


def test_shards_by_bytes(config_file: str, tmp_path: Path, without_ray: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    train = ("max_samples_per_shard=100", "splits=[train]")
    assert run(config_file, *train) == 0
    whole = read_samples(tmp_path / "shards")
    limit = 40_960
    arguments = (config_file, *train, f"max_shard_bytes={limit}", f"output={tmp_path / 'parts'}")
    assert run(*arguments) == 0
    names = sorted(path.name for path in (tmp_path / "parts" / "train").glob("*.tar"))
    assert names[0] == "toy-train-000000-part1.tar" and names[-1] == "toy-train-000000.tar" and len(names) > 2
    sizes = {path: path.stat().st_size for path in (tmp_path / "parts").glob("*/*.tar")}
    assert all(size <= limit for size in sizes.values()) and max(sizes.values()) > limit / 2
    assert read_samples(tmp_path / "parts") == whole
    assert verify(tmp_path / "parts").problems == ()
    before = files(tmp_path / "parts")
    without_ray.clear()
    assert run(*arguments) == 0 and without_ray == []
    (tmp_path / "parts" / "train" / "toy-train-000000-part1.parquet").unlink()
    assert run(*arguments) == 0 and without_ray == ["toy-train-000000"]
    assert files(tmp_path / "parts") == before
    # A sample larger than the limit is alone in its tar.
    assert run(config_file, *train, f"max_shard_bytes={10_240}", f"output={tmp_path / 'single'}") == 0
    assert read_samples(tmp_path / "single") == whole
    index = json.loads((tmp_path / "single" / "train" / "index.json").read_text())
    assert {entry["nsamples"] for entry in index["shardlist"]} == {1}


def read_samples(output: Path) -> dict[str, bytes]:
    """The bytes of each sample of a build, by its key."""
    found: dict[str, bytes] = {}
    for path in output.glob("*/*.parquet"):
        for row in read_ledger(path).rows:
            if row.offset is not None and row.size is not None:
                found[row.key] = path.with_suffix(".tar").read_bytes()[row.offset : row.offset + row.size]
    return found


def test_an_interrupted_build_ends_with_75(
    config_file: str, tmp_path: Path, without_ray: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shard_tools.build._run_tasks", interrupted)
        assert run(config_file) == 75
    assert "run the same command again to go on" in capsys.readouterr().err
    assert json.loads((tmp_path / "shards" / "build.json").read_text())["status"] == "building"
    assert run(config_file) == 0


def test_a_folder_of_videos(shards_config: ShardsConfig, tmp_path: Path, clip: Path, without_ray: list[str]) -> None:
    for split in ("train", "test"):
        (tmp_path / "in" / split).mkdir(parents=True)
        (tmp_path / "in" / split / f"{split}.mp4").write_bytes(clip.read_bytes())
        (tmp_path / "in" / split / f"{split}.txt").write_text("one\ntwo\n")
    arguments = [f"videos={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    assert main(["--config", "configs/shards/folder.yaml", *arguments]) == 0
    assert json.loads((tmp_path / "out" / "test" / "sizes.json").read_text()) == {"my_videos-test-000000.tar": 1}


def test_the_shipped_configs_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shard_tools.__path__[0]).parent / "configs" / "shards"
    for path in sorted(folder.glob("*.yaml")):
        assert main(["--config", str(path), "--show-config"]) == 0
        assert "max_samples_per_shard" in capsys.readouterr().out


def test_the_script_starts_without_heavy_imports(tmp_path: Path) -> None:
    program = "import sys; from shard_tools.build import main; main(['--config', sys.argv[1], '--show-config']); "
    program += "print([name for name in ('torch', 'ray', 'pyarrow', 'decord', 'webdataset') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program, "configs/shards/quickstart.yaml"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
