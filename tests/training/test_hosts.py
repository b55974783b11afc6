from pathlib import Path

import pytest

from dgl_scale.errors import ConfigError
from dgl_scale.training.hosts import read_hostfile, why_unreachable


def test_hostfile(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# two nodes\nnode1 slots=4\n\nnode2   slots=2 # old\n")
    assert read_hostfile(tmp_path / "hosts") == {"node1": 4, "node2": 2}


def test_the_example_hostfile_is_read_as_deepspeed_reads_it() -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    example = Path(__file__).resolve().parents[2] / "cluster" / "hostfile.example"
    assert read_hostfile(example) == dict(fetch_hostfile(str(example))) == {"node01": 8, "node02": 8}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node1\n", "line 1: 'node1' is not of the form HOST slots=N"),
        ("node1 slots=0\n", "is not of the form HOST slots=N"),
        ("a slots=1\na slots=2\n", "line 2: host a occurs twice"),
        ("# nothing\n", "names no host"),
    ],
)
def test_a_wrong_hostfile_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_hostfile(tmp_path / "hosts")


def test_a_missing_hostfile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read hostfile .*: No such file"):
        read_hostfile(tmp_path / "hosts")


def test_reachable_means_that_somebody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)  # an ssh config of the machine must not matter
    # 127.0.0.1 refuses or accepts port 22; both are answers.
    assert why_unreachable("127.0.0.1", timeout_s=2) is None
    assert why_unreachable("no-such-host.invalid", timeout_s=2) == "no such host name"
    # A broadcast address is refused by the kernel itself.
    assert why_unreachable("255.255.255.255", timeout_s=2) in {"network is unreachable", "permission denied"}
