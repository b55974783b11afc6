"""What `--checkpoint` finds at an address, on a real S3 server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dgl_scale.errors import CheckpointError
from dgl_scale.evaluation.remote_checkpoint import remote_checkpoint
from dgl_scale.run_folder import step_folder, write_manifest
from dgl_scale.storage.clients import StorageError
from tests.s3_server import s3_bucket

Put = Callable[[str, bytes], None]


@pytest.fixture(scope="module")
def put() -> Iterator[Put]:
    """`put(key, content)` into a bucket."""
    with s3_bucket() as system:
        yield lambda key, content: system.pipe_file(f"bucket/{key}", content)


@pytest.fixture
def run(put: Put, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The address of a run with checkpoints of steps 10 and 20, and the prompts alone of 30."""
    name = request.node.name
    for step in (10, 20):
        folder = step_folder(tmp_path, step)
        folder.mkdir(parents=True)
        (folder / "prompts.safetensors").write_bytes(b"prompts of %d" % step)
        write_manifest(folder)
        for file in folder.iterdir():
            put(f"{name}/checkpoints/{folder.name}/{file.name}", file.read_bytes())
    put(f"{name}/checkpoints/step-00000030/prompts.safetensors", b"its manifest is on its way")
    return f"s3://bucket/{name}"


def test_a_run_means_its_newest_complete_checkpoint(run: str) -> None:
    with remote_checkpoint(f"{run}/") as found:
        assert (found.name, found.step, found.chosen_by_validation) == ("step-00000020", 20, False)
        assert found.selection == "the newest complete checkpoint of the run"
        assert found.prompts is not None and found.prompts.read_bytes() == b"prompts of 20"
        assert found.address == f"{run}/checkpoints/step-00000020/prompts.safetensors"
    assert not found.prompts.exists()


def test_a_run_with_a_best_checkpoint_means_that(run: str, put: Put) -> None:
    best = {"checkpoint": "step-00000010", "metric": "validation mean R@1", "value": 12.5}
    put(f"{run.removeprefix('s3://bucket/')}/checkpoints/best", json.dumps(best).encode())
    with remote_checkpoint(run) as found:
        assert (found.step, found.chosen_by_validation) == (10, True)
        assert found.selection == "highest validation mean R@1 of the run (12.50)"


@pytest.mark.parametrize("end", ["", "/", "/prompts.safetensors"])
def test_a_step_is_itself(run: str, end: str) -> None:
    with remote_checkpoint(f"{run}/checkpoints/step-00000010{end}") as found:
        assert (found.step, found.selection) == (10, "given by name")


@pytest.mark.parametrize("end", ["/checkpoints/step-00000030", "/checkpoints/step-00000040", "/no/run"])
def test_what_is_not_complete_is_not_there(run: str, end: str) -> None:
    with (
        pytest.raises(CheckpointError, match=r"no complete checkpoint at s3://.*; give the address of a run or of a step"),
        remote_checkpoint(run + end),
    ):
        pass


def test_what_is_damaged_is_refused(run: str, put: Put) -> None:
    put(f"{run.removeprefix('s3://bucket/')}/checkpoints/step-00000020/prompts.safetensors", b"others")
    with pytest.raises(CheckpointError, match="is not what its manifest.json says"), remote_checkpoint(run):
        pass


def test_a_bucket_that_is_not_there_is_named(put: Put) -> None:
    with pytest.raises(StorageError, match="no such bucket|specified bucket"), remote_checkpoint("s3://nowhere/run"):
        pass
