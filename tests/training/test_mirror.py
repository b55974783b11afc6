"""Copies of runs on a real S3 server: complete or absent there too, and enough to go on elsewhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dgl_scale.config import TrainingConfig
from dgl_scale.errors import ConfigError
from dgl_scale.run_folder import (
    FINISHED,
    MANIFEST,
    list_checkpoints,
    mark_finished,
    read_pointer,
    remove_checkpoint,
    step_folder,
    write_manifest,
    write_pointer,
)
from dgl_scale.storage.clients import StorageError
from dgl_scale.training.mirror import RunMirror
from tests.s3_server import s3_bucket


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with s3_bucket() as system:
        yield system


@pytest.fixture
def address(server: Any, request: pytest.FixtureRequest) -> str:
    """Of each test its own."""
    return f"s3://bucket/{request.node.name}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "here" / "mine"
    for step in (10, 20, 30):
        write_checkpoint(folder, step)
    write_pointer(folder, "latest", step_folder(folder, 30))
    write_pointer(folder, "best", step_folder(folder, 10), metric="R@1", value=7.0)
    (folder / "config.yaml").write_text("name: mine\n")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    return folder


def write_checkpoint(run: Path, step: int) -> Path:
    folder = step_folder(run, step)
    folder.mkdir(parents=True)
    (folder / "prompts.safetensors").write_bytes(b"prompts of %d" % step)
    (folder / "state.json").write_text("{}")
    write_manifest(folder)
    return folder


def training(address: str, **values: Any) -> TrainingConfig:
    return TrainingConfig(global_batch_size=1, max_steps=1, mirror=address, **values)


def names(server: Any, address: str) -> set[str]:
    prefix = f"{address.removeprefix('s3://')}/mine/"
    return {path.removeprefix(prefix) for path in server.find(prefix)}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_another_machine_gets_the_newest_and_the_best_and_the_record(address: str, run: Path, tmp_path: Path, capsys: Any) -> None:
    RunMirror(run, training(address)).send()
    elsewhere = tmp_path / "there" / "mine"
    RunMirror(elsewhere, training(address)).fetch()
    assert capsys.readouterr().err == f"step-00000030 comes from {address}/mine\n"
    assert [path.name for path in list_checkpoints(elsewhere)] == ["step-00000010", "step-00000030"]
    expected = {name: content for name, content in files(run).items() if "step-00000020" not in name and not name.endswith("latest")}
    assert files(elsewhere) == expected
    assert read_pointer(elsewhere, "best") == read_pointer(run, "best")


def test_the_machine_that_is_ahead_fetches_nothing(address: str, run: Path) -> None:
    RunMirror(run, training(address)).send()
    write_checkpoint(run, 40)
    before = files(run)
    RunMirror(run, training(address)).fetch()
    assert files(run) == before


def test_what_the_run_s_rules_do_not_keep_goes_there_too(server: Any, address: str, run: Path, tmp_path: Path) -> None:
    mirror = RunMirror(run, training(address, keep_checkpoints=2))
    mirror.send()
    write_checkpoint(run, 40)
    remove_checkpoint(step_folder(run, 20))
    mirror.send()
    steps = {name.split("/")[1] for name in names(server, address) if "step-" in name}
    assert steps == {"step-00000010", "step-00000030", "step-00000040"}  # 10 is the best one
    # A machine that has only the newest and the best cleans up what it never had.
    elsewhere = tmp_path / "there" / "mine"
    mirror = RunMirror(elsewhere, training(address, keep_checkpoints=2))
    mirror.fetch()
    for step in (50, 60):
        write_checkpoint(elsewhere, step)
    mirror.send()
    steps = {name.split("/")[1] for name in names(server, address) if "step-" in name}
    assert steps == {"step-00000010", "step-00000050", "step-00000060"}


def test_finished_is_said_and_taken_back(server: Any, address: str, run: Path) -> None:
    mirror = RunMirror(run, training(address))
    mark_finished(run, 30)
    mirror.send()
    assert FINISHED in names(server, address)
    (run / FINISHED).unlink()
    mirror.send()
    assert FINISHED not in names(server, address)


def test_incomplete_and_damaged_copies_are_passed_over(server: Any, address: str, run: Path, tmp_path: Path, capsys: Any) -> None:
    RunMirror(run, training(address)).send()
    bucket = address.removeprefix("s3://")
    server.pipe_file(f"{bucket}/mine/checkpoints/step-00000030/prompts.safetensors", b"others")
    server.pipe_file(f"{bucket}/mine/checkpoints/step-00000040/prompts.safetensors", b"its manifest is on its way")
    server.pipe_file(f"{bucket}/mine/checkpoints/step-00000050/{MANIFEST}", b'{"../../escaped": {"bytes": 1, "sha256": ""}}')
    elsewhere = tmp_path / "there" / "mine"
    RunMirror(elsewhere, training(address)).fetch()
    assert [path.name for path in list_checkpoints(elsewhere)] == ["step-00000010", "step-00000020"]
    said = capsys.readouterr().err
    assert "step-00000030 is not complete: " in said and "prompts.safetensors is damaged" in said
    assert "leads out of" in said and not list(tmp_path.rglob("escaped"))


def test_a_damaged_checkpoint_here_is_not_sent_and_comes_back_from_there(server: Any, address: str, run: Path, capsys: Any) -> None:
    RunMirror(run, training(address)).send()
    whole = files(step_folder(run, 30))
    (step_folder(run, 30) / "state.json").write_text("[]")
    write_checkpoint(run, 25)
    (step_folder(run, 25) / "state.json").unlink()
    RunMirror(run, training(address)).send()
    assert "not sent: " in capsys.readouterr().err
    assert not {name for name in names(server, address) if "step-00000025" in name}
    RunMirror(run, training(address)).fetch()
    assert files(step_folder(run, 30)) == whole


def test_a_checkpoint_written_anew_replaces_its_copy(server: Any, address: str, run: Path) -> None:
    RunMirror(run, training(address)).send()
    folder = step_folder(run, 30)
    (folder / "prompts.safetensors").write_bytes(b"others")
    (folder / MANIFEST).unlink()
    write_manifest(folder)
    RunMirror(run, training(address)).send()
    there = f"{address.removeprefix('s3://')}/mine/checkpoints/step-00000030"
    assert server.cat(f"{there}/prompts.safetensors") == b"others"
    assert server.cat(f"{there}/{MANIFEST}") == (folder / MANIFEST).read_bytes()


def test_addresses_that_cannot_serve_are_refused(server: Any, run: Path) -> None:
    for address in ("runs/mirror", "https://example.org/runs", "s3://", "s3:///runs"):
        with pytest.raises(ConfigError, match="training.mirror is .*give an address in object storage"):
            RunMirror(run, training(address))
    with pytest.raises(StorageError, match="s3://nowhere: no such bucket; create it or name another"):
        RunMirror(run, training("s3://nowhere/runs"))
