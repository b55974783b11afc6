"""A Ray cluster of this machine alone, on free loopback ports and in a folder of its own, ended for sure."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dgl_scale.errors import DglError
from dgl_scale.quickstart.processes import ending, free_port, wait_for_port
from dgl_scale.ray_cluster import private_ray_folder, ray_environment

_START_S = 120.0
_OBJECT_STORE_BYTES = 512 << 20


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
    programs = Path(sys.executable).parent
    environment = {**ray_environment(), "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
    dashboard_port = free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    with private_ray_folder() as folder, open(log, "a", encoding="utf-8") as stream:
        command = [str(programs / "ray"), "start", "--head", "--block", f"--num-cpus={num_cpus}", f"--temp-dir={folder}"]
        command += ["--node-ip-address=127.0.0.1", f"--port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"]
        command += [f"--ray-client-server-port={free_port()}"]
        command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
        command += ["--disable-usage-stats", f"--object-store-memory={_OBJECT_STORE_BYTES}"]
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            text=True,
            start_new_session=True,
        )
        # It holds nothing worth saving, and by itself drains for up to 30 seconds.
        with ending(process, grace_s=1.0):
            _wait(dashboard_port, process, log)
            yield LocalRay(f"http://127.0.0.1:{dashboard_port}", environment)


def _wait(port: int, process: "subprocess.Popen[str]", log: Path) -> None:
    try:
        wait_for_port(port, process, _START_S)
    except DglError as error:
        raise DglError(f"the local Ray did not start: {error}; its output is in {log}") from error
