"""Configs side by side: only what differs is told, and a name is no difference."""

from pathlib import Path

import pytest

from dgl_scale.errors import DataError
from dgl_scale.evaluation.run_settings import compare_settings, read_configs


def test_only_differences_are_told() -> None:
    found = compare_settings(
        {"a": "name: a\nseed: 1\noptim: {lr: 0.1, eps: 1}\n", "b": "name: b\nseed: 1\noptim: {lr: 0.2, eps: 1}\ndata: {train: null}\n"}
    )
    assert found is not None
    assert (found.names, found.rows) == (["a", "b"], [("optim.lr", ["0.1", "0.2"]), ("data.train", ["not set", "null"])])
    assert compare_settings({"a": "seed: 1"}) is None
    same = compare_settings({"a": "name: a", "b": "name: b"})
    assert same is not None
    assert same.rows == []


def test_configs_of_runs(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1")
    assert read_configs({"a": tmp_path, "frozen": tmp_path / "none"}) == {"a": "seed: 1"}
    (tmp_path / "config.yaml").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"cannot read .*config\.yaml"):
        read_configs({"a": tmp_path})


@pytest.mark.parametrize(("text", "message"), [("a: [", "no valid YAML"), ("- 1", "no mapping")])
def test_bad_configs(text: str, message: str) -> None:
    with pytest.raises(DataError, match=f"run a is {message}"):
        compare_settings({"a": text, "b": "seed: 1"})
