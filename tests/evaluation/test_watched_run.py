"""What is seen of a run from outside: complete checkpoints only, in a folder and in object storage."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dgl_scale.evaluation.watched_run import NotWholeError, WatchedRun
from dgl_scale.run_folder import mark_finished, remove_checkpoint, step_folder, unmark_finished, write_manifest
from tests.s3_server import s3_bucket


def write_checkpoint(run: Path, step: int, content: bytes = b"prompts") -> Path:
    folder = step_folder(run, step)
    folder.mkdir(parents=True)
    (folder / "prompts.safetensors").write_bytes(content)
    write_manifest(folder)
    return folder


def steps(run: WatchedRun) -> list[int]:
    return [checkpoint.step for checkpoint in run.checkpoints()]


def test_complete_checkpoints_are_seen_oldest_first(tmp_path: Path) -> None:
    run = WatchedRun(str(tmp_path / "run"))
    assert not run.exists() and not run.is_finished() and steps(run) == []
    for step in (20, 100, 3):
        write_checkpoint(tmp_path / "run", step)
    step_folder(tmp_path / "run", 200).mkdir()  # nothing in it yet
    (tmp_path / "run" / "checkpoints" / ".step-00000300.x.tmp").mkdir()
    (tmp_path / "run" / "checkpoints" / "latest").write_text("{}")
    assert run.exists() and steps(run) == [3, 20, 100]
    remove_checkpoint(step_folder(tmp_path / "run", 20))
    assert steps(run) == [3, 100]
    mark_finished(tmp_path / "run", 100)
    assert run.is_finished()
    unmark_finished(tmp_path / "run")
    assert not run.is_finished()


def test_prompts_outlive_their_checkpoint_and_are_checked(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 5)
    run = WatchedRun(str(tmp_path))
    (checkpoint,) = run.checkpoints()
    with run.prompts(checkpoint) as copy:
        remove_checkpoint(folder)
        assert copy.read_bytes() == b"prompts"
    assert not copy.exists()
    with pytest.raises(NotWholeError, match=r"step-00000005/prompts.safetensors cannot be read: No such file"), run.prompts(checkpoint):
        pass
    write_checkpoint(tmp_path, 5)
    (folder / "prompts.safetensors").write_bytes(b"promptz")
    with pytest.raises(NotWholeError, match="is not what its manifest.json says"), run.prompts(checkpoint):
        pass


def test_a_checkpoint_written_anew_is_read_anew(tmp_path: Path) -> None:
    run, folder = WatchedRun(str(tmp_path)), write_checkpoint(tmp_path, 5)
    (first,) = run.checkpoints()
    remove_checkpoint(folder)
    assert run.checkpoints() == []
    write_checkpoint(tmp_path, 5, b"others")
    (second,) = run.checkpoints()
    assert first.prompts_sha256 != second.prompts_sha256


@pytest.fixture
def put_object() -> Iterator[Callable[[str, bytes], None]]:
    """`put_object(key, content)` into a bucket of an S3 server on this machine."""
    with s3_bucket() as system:
        yield lambda key, content: system.pipe_file(f"bucket/{key}", content)


def test_a_run_in_object_storage(tmp_path: Path, put_object: Callable[[str, bytes], None]) -> None:
    run = WatchedRun("s3://bucket/runs/one")
    assert not run.exists() and steps(run) == [] and run.local_folder is None
    for step in (10, 20):
        folder = write_checkpoint(tmp_path, step)
        for file in sorted(folder.iterdir(), reverse=True):  # the manifest last
            put_object(f"runs/one/checkpoints/{folder.name}/{file.name}", file.read_bytes())
    put_object("runs/one/checkpoints/step-00000030/prompts.safetensors", b"its manifest is on its way")
    assert run.exists() and steps(run) == [10, 20]
    with run.prompts(run.checkpoints()[0]) as copy:
        assert copy.read_bytes() == b"prompts"
    assert not run.is_finished()
    put_object("runs/one/finished.json", json.dumps({"step": 20}).encode())
    assert run.is_finished()
    assert os.fspath(run.address(run.checkpoints()[1])) == "s3://bucket/runs/one/checkpoints/step-00000020/prompts.safetensors"
