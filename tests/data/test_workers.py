"""Workers under the signals of terminals and schedulers, in a real process tree."""

import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import signal, sys
from torch.utils.data import DataLoader, Dataset
from dgl_scale.data.workers import prepare_worker, start_workers

class Squares(Dataset):
    def __getitem__(self, i):
        return i * i

if __name__ == "__main__":
    received = []
    if sys.argv[1] == "handle":
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: received.append(number))
    kept = DataLoader(Squares(), batch_size=None, sampler=range(10**9), num_workers=1, multiprocessing_context="spawn",
                      persistent_workers=True, worker_init_fn=prepare_worker)
    batches = start_workers(kept, lambda: None)
    for expected, square in enumerate(batches):
        assert square == expected**2
        if expected == 3:
            print("ready", flush=True)
        if len(received) == 2 and expected > 2000:
            print("went on", flush=True)
            break
"""


@pytest.fixture
def run(tmp_path):
    script = tmp_path / "squares.py"
    script.write_text(SCRIPT)
    started = []

    def start(argument):
        process = subprocess.Popen(
            [sys.executable, str(script), argument], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True
        )
        started.append(process)
        line = process.stdout.readline()
        assert line == "ready\n", line + process.stdout.read()
        children = [child for child in processes() if parent_of(child) == process.pid]
        assert len(children) == 2  # a worker and multiprocessing's resource tracker
        return process, children

    yield start
    for process in started:
        process.stdout.close()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def processes():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def parent_of(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            state, parent = stream.read().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def assert_gone(children):
    deadline = time.monotonic() + 60
    while any(parent_of(child) is not None for child in children):
        assert time.monotonic() < deadline, "workers outlived their parent"
        time.sleep(0.05)


@pytest.mark.slow
def test_workers_serve_on_under_a_schedulers_signals_and_end_with_the_run(run):
    process, children = run("handle")
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=240)
    assert output == "went on\n" and process.returncode == 0
    assert_gone(children)


@pytest.mark.slow
def test_ctrl_c_gives_one_traceback_and_no_leftovers(run):
    process, children = run("default")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=240)
    assert output.count("Traceback") == 1 and output.count("KeyboardInterrupt") == 1
    assert_gone(children)


@pytest.mark.slow
def test_workers_of_a_killed_run_end_at_once(run):
    process, children = run("default")
    process.kill()
    process.wait(10)
    assert_gone(children)


_ENDED = """
import multiprocessing, signal, time
from dgl_scale.data.workers import end_workers

def answer(*arguments):
    raise RuntimeError("a worker died")  # as DataLoader does

signal.signal(signal.SIGCHLD, answer)
context = multiprocessing.get_context("fork")
for _ in range(40):
    workers = [context.Process(target=time.sleep, args=(3600,), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    end_workers(workers)
    assert not any(worker.is_alive() for worker in workers)
assert signal.getsignal(signal.SIGCHLD) is answer
"""


def test_workers_that_are_ended_are_known_to_have_ended():
    done = subprocess.run([sys.executable, "-c", _ENDED], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
