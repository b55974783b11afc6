import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dgl_scale.errors import DataError, DglError
from dgl_scale.files import (
    LockedError,
    atomic_file,
    atomic_folder,
    exclusive_lock,
    file_sha256,
    json_sha256,
    path_inside,
    read_json,
    write_json,
)


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


def test_a_lock_has_one_holder_and_leaves_no_file(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".lock"
    with exclusive_lock(lock):
        with pytest.raises(LockedError, match="held by another process"), exclusive_lock(lock):
            pass
        assert lock.exists()
    assert not lock.exists()
    with exclusive_lock(lock):
        pass


def test_waiting_lockers_come_one_after_the_other(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with exclusive_lock(tmp_path / ".lock", wait=True):
                inside += 1
                most = max(most, inside)
                time.sleep(0)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = "import sys, time, pathlib\nfrom dgl_scale.files import exclusive_lock\n"
    code += "with exclusive_lock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    lock = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError), exclusive_lock(lock):
            pass
        holder.kill()
    with exclusive_lock(lock):
        pass


def test_a_place_without_locks_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DglError, match="cannot lock"), exclusive_lock(tmp_path / "file" / ".lock"):
        pass
