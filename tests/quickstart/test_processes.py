import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dgl_scale.errors import DglError
from dgl_scale.quickstart.processes import ending, free_port, run_process, show_command, wait_for_port

TREE = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"])
print(child.pid, flush=True)
time.sleep(100)
"""


def test_a_failed_command_names_code_and_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "logs" / "command.log"
    with pytest.raises(DglError, match=rf"ended with exit code 3; its output is in {log}"):
        run_process([sys.executable, "-c", "print('shown'); print('noise'); raise SystemExit(3)"], log, {}, quiet=("noise",))
    shown = capsys.readouterr().out
    assert "shown" in shown
    assert "noise" not in shown
    assert "noise" in log.read_text()


def test_the_whole_tree_ends_even_orphans_that_ignore_sigterm() -> None:
    process = subprocess.Popen([sys.executable, "-c", TREE], stdout=subprocess.PIPE, text=True, start_new_session=True)
    with ending(process, grace_s=0.5):
        child = int(process.stdout.readline())
        # The launcher dies first, so the child is nobody's descendant; it is found by its session.
        process.kill()
        process.wait()
        assert psutil.pid_exists(child)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_waiting_for_a_port_notices_that_the_server_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(4)"], text=True)
    with pytest.raises(DglError, match="ended with exit code 4 while starting"):
        wait_for_port(free_port(), process, timeout_s=30)


def test_shown_commands_can_be_pasted() -> None:
    words = ["program", "a b", "it's", "x=$HOME"]
    echoed = subprocess.run(f"printf '%s\\n' {show_command(words)}", shell=True, capture_output=True, text=True, check=True, env=os.environ)
    assert echoed.stdout.splitlines() == words
