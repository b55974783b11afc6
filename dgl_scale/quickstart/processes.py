"""Child processes of the quickstart: shown, streamed, and surely ended."""

import contextlib
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from dgl_scale.errors import DglError

_GRACE_S = 45.0
_KILL_S = 5.0
_PORTS = (20_000, 32_000)


def show_command(command: Sequence[str]) -> str:
    """The command as one line that a shell understands."""
    return " ".join(shlex.quote(word) for word in command)


def run_process(command: Sequence[str], log: Path, environment: Mapping[str, str], *, quiet: tuple[str, ...] = ()) -> None:
    """Run a command to its end, its output on stdout and in `log`.

    Whatever ends this call early (Ctrl-C, SIGTERM, an error) ends the command and all its descendants:
    first by SIGTERM, with time for a checkpoint, then by SIGKILL.

    Args:
        quiet: lines that contain one of these texts go to the log only.

    Raises:
        DglError: the command failed; names its exit code and the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    with ending(process), open(log, "a", encoding="utf-8") as stream:
        stream.write(f"$ {show_command(command)}\n")
        for line in process.stdout or ():
            stream.write(line)
            if line.strip() and not any(text in line for text in quiet):
                sys.stdout.write(f"    {line}")
                sys.stdout.flush()
        code = process.wait()
    if code != 0:
        raise DglError(f"{Path(command[0]).name} ended with exit code {code}; its output is in {log}")


@contextlib.contextmanager
def ending(process: "subprocess.Popen[str]", grace_s: float = _GRACE_S) -> Iterator[None]:
    """End `process` and its descendants when the block is left, however it is left."""
    try:
        yield
    finally:
        end_process_tree(process.pid, grace_s)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)


def end_process_tree(pid: int, grace_s: float) -> None:
    """SIGTERM to a process, its session and its descendants; after `grace_s` seconds SIGKILL to who is left."""
    members = _members(pid)
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(members, timeout=grace_s)
    stubborn = list({*alive, *_members(pid)})
    for member in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(stubborn, timeout=_KILL_S)


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on.

    From between Ray's range for its workers and the range that systems give to outgoing connections, or another
    program could get the same number before the server that this one is for has started.
    """
    candidates = random.SystemRandom().sample(range(*_PORTS), k=100)
    for port in candidates:
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise DglError(f"none of 100 ports between {_PORTS[0]} and {_PORTS[1]} is free")


def wait_for_port(port: int, process: "subprocess.Popen[str]", timeout_s: float) -> None:
    """Wait until something listens on a loopback port.

    Raises:
        DglError: `process` ended, or `timeout_s` seconds have passed.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DglError(f"it ended with exit code {process.returncode} while starting")
        with contextlib.closing(socket.socket()) as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise DglError(f"nothing listens on port {port} after {timeout_s:.0f} s; is the machine very busy?")


def _members(pid: int) -> list[psutil.Process]:
    """The process, its descendants, and whoever shares its session (orphans of a dead launcher)."""
    found: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(pid)
        found = {p.pid: p for p in [leader, *leader.children(recursive=True)]}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == pid:
                found[process.pid] = process
    return [process for process in found.values() if process.pid != os.getpid()]
