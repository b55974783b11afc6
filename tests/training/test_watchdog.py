"""The watchdog in a process of its own, since it ends it."""

import subprocess
import sys
import time
from pathlib import Path

from dgl_scale.training.watchdog import HangWatchdog

HANGING = """
import sys, threading
from pathlib import Path
from dgl_scale.training.watchdog import HangWatchdog

def a_collective_that_never_returns():
    threading.Event().wait()

watchdog = HangWatchdog(Path(sys.argv[1]), rank=3, timeout_s=0.3, grace_s=0.0)
watchdog.beat("step 12")
a_collective_that_never_returns()
"""


def test_a_hang_ends_the_process_and_says_where_it_stood(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HANGING, str(tmp_path / "hang")], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "rank 3 has been at 'step 12' for 0 s (training.hang_timeout_s) and ends" in done.stderr
    assert "a_collective_that_never_returns" in (tmp_path / "hang" / "rank-00003.txt").read_text()


def test_what_moves_is_left_alone(tmp_path: Path) -> None:
    watchdog = HangWatchdog(tmp_path / "hang", rank=0, timeout_s=5.0)
    for step in range(3):
        watchdog.beat(f"step {step}")
        time.sleep(0.01)
    watchdog.close()
    assert not (tmp_path / "hang").exists()
