import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dgl_scale.errors import DataError, DglError
from dgl_scale.files import atomic_file, atomic_folder, file_sha256, json_sha256, path_inside, read_json, write_json


def test_atomic_file_is_absent_after_an_error(tmp_path: Path) -> None:
    target = tmp_path / "result"
    with pytest.raises(RuntimeError), atomic_file(target) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_atomic_file_keeps_the_old_content_until_whole(tmp_path: Path) -> None:
    target = tmp_path / "result"
    target.write_bytes(b"old")
    with atomic_file(target) as stream:
        stream.write(b"new")
        stream.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["result"]


def test_atomic_files_follow_the_umask(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "shared") as stream:
        stream.write(b"x")
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o644


def test_atomic_folder_is_absent_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "step") as folder:
        (folder / "file").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_atomic_folder_never_replaces(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "step") as folder:
        (folder / "file").write_text("whole")
    with pytest.raises(DglError, match="never overwritten"), atomic_folder(tmp_path / "step"):
        pass
    assert (tmp_path / "step" / "file").read_text() == "whole"


@pytest.fixture
def small_disk(tmp_path: Path):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and shutil.which("mount")
        and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=False).returncode == 0
    )
    if not mounted:
        pytest.skip("cannot mount a tmpfs here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_is_one_line_and_leaves_nothing(small_disk: Path) -> None:
    with pytest.raises(DglError, match="cannot write .*No space left on device") as error, atomic_file(small_disk / "big") as stream:
        stream.write(b"x" * (1 << 20))
    assert "\n" not in str(error.value)
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("name", ["/etc/passwd", "../other", "a/../../b", "link/x"])
def test_paths_stay_inside(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(DataError, match="leads out of"):
        path_inside(tmp_path, name)


def test_path_inside_allows_subfolders(tmp_path: Path) -> None:
    assert path_inside(tmp_path, "a/./b.mp4") == tmp_path.resolve() / "a" / "b.mp4"


def test_json_round_trip_and_refusals(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, "ü"]})
    assert read_json(tmp_path / "a.json") == {"b": [1, "ü"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "nan.json", float("nan"))
    assert not (tmp_path / "nan.json").exists()
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_json(tmp_path / "bad.json")


def test_digests_are_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert json_sha256({"b": 1, "a": 2}) == json_sha256({"a": 2, "b": 1}) != json_sha256({"a": 1, "b": 2})
