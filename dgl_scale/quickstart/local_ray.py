"""A Ray cluster of this machine alone, on free loopback ports and in a folder of its own, ended for sure."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from dgl_scale.errors import DglError
from dgl_scale.quickstart.processes import end_process_tree, free_port, wait_for_port

_START_S = 120.0


@dataclass(frozen=True)
class LocalRay:
    """A running cluster: the address that `ray job submit` takes, and the environment it needs."""

    address: str
    environment: dict[str, str]


@contextlib.contextmanager
def local_ray(num_cpus: int, log: Path) -> Iterator[LocalRay]:
    """Start `ray start --head`, yield it, and end every process of it.

    Raises:
        DglError: Ray does not start; names the log.
    """
    # Ray's sockets lie below this folder and their paths may have at most 107 characters.
    folder = tempfile.mkdtemp(prefix="dgl-ray-", dir="/tmp" if Path("/tmp").is_dir() else None)  # noqa: S108
    dashboard_port = free_port()
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={free_port()}",
    ]
    command += [
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard_port}",
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    command += [f"--num-cpus={num_cpus}", f"--temp-dir={folder}", "--disable-usage-stats", f"--object-store-memory={512 << 20}"]
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = _environment(Path(folder))
    try:
        with open(log, "a", encoding="utf-8") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                text=True,
                start_new_session=True,
                env={**os.environ, **environment},
            )
        try:
            _wait(dashboard_port, process, log)
            yield LocalRay(f"http://127.0.0.1:{dashboard_port}", environment)
        finally:
            _end_ray(process.pid, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path) -> dict[str, str]:
    """No usage statistics, this Python's programs first, and a token of the cluster's own.

    Without it any user of the machine could run a job here as us; and where an earlier Ray left a token in the
    home folder, `ray start` would want it and `ray job submit` not find it.
    """
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="ascii")
    programs = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", "")
    return {"RAY_USAGE_STATS_ENABLED": "0", "PATH": programs, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


def _wait(port: int, process: "subprocess.Popen[str]", log: Path) -> None:
    try:
        wait_for_port(port, process, _START_S)
    except DglError as error:
        raise DglError(f"the local Ray did not start: {error}; its output is in {log}") from error


def _end_ray(pid: int, folder: str) -> None:
    # It holds nothing worth saving, and by itself drains for up to 30 seconds.
    end_process_tree(pid, grace_s=1.0)
    # Ray's daemons and workers live in sessions of their own; all of them name the temporary folder.
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and any(folder in word for word in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
