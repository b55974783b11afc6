"""`dgl-scale doctor` as users start it."""

import json
from pathlib import Path

import pytest

from dgl_scale.doctor import machine
from dgl_scale.doctor.command import main


@pytest.mark.slow
def test_a_sound_machine_has_no_failures_and_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "runs"), "--config", "configs/quickstart.yaml", "--json"]) == 0
    findings = {finding["subject"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["gloo"]["status"] == "ok"
    assert "2 processes: 16 MiB summed" in findings["gloo"]["found"]
    assert {"torch", "deepspeed", "rename", "lock", "write speed", "shared memory", "clock", "port"} <= findings.keys()
    assert all(finding["advice"] for finding in findings.values() if finding["status"] != "ok")
    assert not list(tmp_path.iterdir())


def test_hosts_that_cannot_be_reached_fail_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "check_machine", lambda config: iter(()))
    (tmp_path / "hosts").write_text("no-such-host.invalid slots=2\n")
    assert main(["--output", str(tmp_path), "--hostfile", str(tmp_path / "hosts")]) == 1
    output = capsys.readouterr().out
    assert "fail  host no-such-host.invalid" in output
    assert "-> ssh to it must work without a password" in output
    (tmp_path / "hosts").write_text("nonsense\n")
    assert main(["--hostfile", str(tmp_path / "hosts")]) == 2
    assert "'nonsense' is not of the form HOST slots=N" in capsys.readouterr().err
