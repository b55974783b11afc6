import fcntl
from pathlib import Path

import pytest

from dgl_scale.doctor.folder import check_folder, check_lock, check_rename, check_speed


def test_a_local_folder_holds_checkpoints(tmp_path: Path) -> None:
    for check in (check_rename, check_lock, check_speed):
        folder = tmp_path / check.__name__
        folder.mkdir()
        finding = check(folder)
        assert (finding.status, finding.advice) == ("ok", ""), finding


def test_locks_that_exclude_nobody_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda stream, operation: None)
    assert check_lock(tmp_path).status == "warn"


def test_a_folder_that_nobody_can_write_fails() -> None:
    findings = list(check_folder(Path("/proc/runs")))
    assert [finding.status for finding in findings] == ["fail"]
    assert "cannot write to /proc" in findings[0].found
