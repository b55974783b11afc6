"""The quickstart at reduced size, as a newcomer runs it: interrupted, continued, and run again."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Started:
    """A quickstart with a mark in its environment, by which every process that it leaves is found."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._log = log
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"DGL_TEST_MARK": self._mark, "OMP_NUM_THREADS": "1"}
        command = [str(Path(sys.executable).with_name("dgl-scale")), "quickstart", "--reduced", "--folder", str(folder), "--device", "cpu"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True
        )

    def text(self) -> str:
        return self._log.read_text()

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + 600
        while words not in self.text():
            assert self._process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.1)

    def interrupt(self) -> int:
        # As a terminal does: to the whole foreground group.
        os.killpg(self._process.pid, signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        return self._process.wait(timeout=800)

    def processes(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def left(self) -> list[psutil.Process]:
        """Those that are still there when the dying have had time to die."""
        deadline = time.monotonic() + 10
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.processes()

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("DGL_TEST_MARK") == self._mark and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Started]]:
    runs: list[Started] = []
    yield runs
    for run in runs:
        for process in run.processes():
            process.kill()


def test_interrupted_anywhere_it_leaves_no_process_and_goes_on(tmp_path: Path, started: list[Started]) -> None:
    folder = tmp_path / "world and runs"

    def start() -> Started:
        started.append(Started(folder, tmp_path / f"{len(started)}.log"))
        return started[-1]

    for phase in ("1/5 videos", "$ DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 ray job submit", "step 3/12", "4/5 evaluation"):
        run = start()
        run.wait_for(phase)
        assert run.processes()
        assert run.interrupt() == 75, run.text()
        assert run.left() == [], run.text()
        assert "Traceback" not in run.text()
        assert "interrupted" in run.text()

    run = start()
    assert run.wait() == 0, run.text()
    assert run.left() == []
    report = folder / "report.html"
    assert f"report: {report}" in run.text()
    html = report.read_text()
    assert all(name in html for name in ("Frozen CLIP", "temporal head", "DGL-Transformer"))
    assert "http://" not in html.replace("http://127.0.0.1", "").replace("http://www.w3.org", "")

    again = start()
    assert again.wait() == 0
    assert again.text().count("found") == 4
    assert "$ " not in again.text()
