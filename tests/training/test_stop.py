import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dgl_scale.training.stop import StopReason, StopRequest, count_launchers, launcher_processes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_noted_and_handlers_are_given_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    assert stop.reason == StopReason.NONE
    os.kill(os.getpid(), number)
    assert stop.reason.name == number.name
    stop.close()
    assert signal.getsignal(number) == before


def test_ctrl_c_twice_interrupts() -> None:
    stop = StopRequest()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    stop.close()


def wait_for_reason(stop: StopRequest) -> StopReason:
    deadline = time.monotonic() + 30
    while stop.reason == StopReason.NONE and time.monotonic() < deadline:
        time.sleep(0.02)
    stop.close()
    return stop.reason


def test_the_time_limit_is_noticed() -> None:
    assert wait_for_reason(StopRequest(max_minutes=0.001)) == StopReason.TIME_LIMIT


def test_a_notice_of_preemption_is_noticed(tmp_path: Path) -> None:
    stop = StopRequest(preemption_file=str(tmp_path / "notice"))
    assert stop.reason == StopReason.NONE
    (tmp_path / "notice").touch()
    assert wait_for_reason(stop) == StopReason.PREEMPTION


@pytest.mark.parametrize(
    ("command_lines", "expected"),
    [
        ([], 0),
        (["/usr/bin/python -m pytest tests/x.py", "deepspeed"], 0),
        (["python /venv/bin/deepspeed dgl_scale/train.py", "-bash", "sshd: user@pts/0"], 1),
        (["bash -c cd /x; python -m deepspeed.launcher.launch", "sshd: user@notty", "sshd: /usr/sbin/sshd"], 3),
    ],
)
def test_launchers_end_where_a_person_begins(command_lines: list[str], expected: int) -> None:
    assert count_launchers(command_lines) == expected


def test_a_grandparent_that_launches_is_watched(tmp_path: Path) -> None:
    program = (
        "import json; from dgl_scale.training.stop import launcher_processes; print(json.dumps([p.pid for p in launcher_processes()]))"
    )
    # The name makes it look like a launcher of ranks, as `deepspeed.launcher.launch` does.
    launcher = tmp_path / "deepspeed.py"
    launcher.write_text(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}], check=True)")
    outer = tmp_path / "torchrun.py"
    outer.write_text(f"import subprocess, sys; subprocess.run([sys.executable, {str(launcher)!r}], check=True)")
    done = subprocess.Popen([sys.executable, str(outer)], stdout=subprocess.PIPE, text=True)
    watched = json.loads(done.communicate()[0])
    assert len(watched) == 2
    assert watched[1] == done.pid
    assert len(launcher_processes()) >= 1


WAITING = """
import sys
from datetime import timedelta
from torch.distributed import TCPStore
from dgl_scale.training.stop import StopRequest
store = TCPStore("127.0.0.1", 0, 2, True, timedelta(seconds=100), wait_for_workers=False)
stop = StopRequest()
with stop.at_once():
    print("waiting", flush=True)
    store.get("what nobody sets")
"""


@pytest.mark.slow
def test_a_rank_that_waits_for_others_ends_by_a_signal_at_once() -> None:
    waiting = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "waiting\n"
    waiting.terminate()
    _, said = waiting.communicate(timeout=50)
    assert waiting.returncode == 75
    assert said == "stopped by SIGTERM before the first step; run the same command to go on\n"


@pytest.mark.slow
def test_a_rank_that_waits_ends_with_its_launcher() -> None:
    program = ["import os, subprocess, sys", "os.environ['RANK'] = '0'", f"subprocess.run([sys.executable, '-c', {WAITING!r}])"]
    done = subprocess.Popen([sys.executable, "-c", "; ".join(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.stdout is not None
    assert done.stdout.readline() == "waiting\n"
    done.kill()
    # The rank holds the pipe too, so this is its end.
    _, said = done.communicate(timeout=50)
    assert "stopped by the death of its launcher before the first step" in said


def test_after_the_block_signals_are_noted_as_before() -> None:
    stop = StopRequest()
    with stop.at_once():
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.reason == StopReason.SIGTERM
    stop.close()
