from pathlib import Path

import pytest

from dgl_scale.dataset_config import MsrvttConfig
from dgl_scale.errors import ConfigError
from dgl_scale.shards_config import ShardsConfig
from shard_tools.submit_folder import resolve_paths, submit_folder


def config(**paths: str) -> ShardsConfig:
    return ShardsConfig(dataset="d", format="table", **{"annotations": "a.csv", "videos": "v", "output": "o", **paths})


@pytest.fixture
def job_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_paths_are_relative_to_the_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    resolved = resolve_paths(config(videos="../v", output="~/o"))
    assert (resolved.annotations, resolved.videos, resolved.output) == (str(tmp_path / "a.csv"), str(tmp_path.parent / "v"), "/home/me/o")


def test_the_files_of_a_dataset_are_resolved_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    section = MsrvttConfig(captions=["one.json", "/two.json"], train="t.csv", test="~/x.csv")
    monkeypatch.setenv("HOME", "/home/me")
    resolved = resolve_paths(ShardsConfig(dataset="d", format="msrvtt", msrvtt=section, videos="v", output="o")).msrvtt
    assert resolved == section.model_copy(
        update={"captions": (f"{tmp_path}/one.json", "/two.json"), "train": f"{tmp_path}/t.csv", "test": "/home/me/x.csv"}
    )


def test_in_a_job_they_are_relative_to_the_checkout(job_copy: Path) -> None:
    checkout = Path(__file__).resolve().parents[2]
    if submit_folder() is None:
        pytest.skip("the package is not installed in editable mode")
    assert submit_folder() == checkout
    assert resolve_paths(config()).output == str(checkout / "o")


def test_in_a_job_without_checkout_relative_paths_are_refused(job_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.distributions", lambda **_: [])
    with pytest.raises(ConfigError, match=r"output: 'o' is relative, .* give an absolute path \(output=/\.\.\.\)"):
        resolve_paths(config(annotations="/a.csv", videos="/v"))
    assert resolve_paths(config(annotations="/a.csv", videos="/v", output="/o")).output == "/o"
    section = MsrvttConfig(captions="one.json", train="/t.csv", test="/x.csv")
    with pytest.raises(ConfigError, match="msrvtt.captions: 'one.json' is relative"):
        resolve_paths(ShardsConfig(dataset="d", format="msrvtt", msrvtt=section, videos="/v", output="/o"))
