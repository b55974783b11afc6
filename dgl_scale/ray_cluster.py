"""Ray for this process: the cluster that is there, or a private one with a sure end."""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

from dgl_scale.errors import ConfigError, DglError

_START_ATTEMPTS = 5
_CONNECT_TIMEOUT_S = 15.0
_KILL_S = 5.0
_OBJECT_STORE_BYTES = 256 << 20
# Unix sockets have at most 107 bytes; Ray puts about 60 below its folder.
_MAX_FOLDER_LENGTH = 40
_FOLDER_PREFIX = "dgl-ray-"
_LOCK_NAME = "owner.lock"
_TOKEN_VARIABLES = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}


@contextlib.contextmanager
def ray_cluster(num_cpus: int) -> Iterator[None]:
    """This process's connection to Ray, else one to `RAY_ADDRESS` (Ray sets it for jobs), else a private cluster.

    What this call begins ends with the block, a private cluster with all its processes.

    Args:
        num_cpus: of a private cluster; tickets, so more than there are cores is slow, not wrong.

    Raises:
        ConfigError: nobody answers at `RAY_ADDRESS`.
        DglError: Ray does not start.
    """
    address = os.environ.get("RAY_ADDRESS")
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield
        return
    with contextlib.ExitStack() as stack:
        if address:
            _check_reachable(address)
            _init_ray(1, None, {})
        else:
            folder = stack.enter_context(private_ray_folder())
            # Ray reads its environment when it is imported, and remembers it: this is never undone.
            os.environ.update(ray_environment())
            options = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES, "_temp_dir": folder}
            _init_ray(_START_ATTEMPTS, folder, {"address": "local", "num_cpus": num_cpus, **options})
        import ray

        stack.callback(ray.shutdown)
        yield


@contextlib.contextmanager
def private_ray_folder() -> Iterator[str]:
    """A new folder for a Ray; when the block is left, its processes are ended and the folder is removed.

    So are those of a process that was killed and could not do it itself.
    """
    remove_abandoned()
    folder = tempfile.mkdtemp(prefix=_FOLDER_PREFIX)
    if len(folder) > _MAX_FOLDER_LENGTH:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir="/tmp")
    begun, lock_path = os.path.join(folder, "lock"), os.path.join(folder, _LOCK_NAME)
    with open(begun, "wb") as lock:
        # Under its name only when it is held: nobody may find it free.
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(begun, lock_path)
        try:
            yield folder
        finally:
            end_processes_of(folder)
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned() -> None:
    """End the private Rays of this machine whose owners were killed: their locks are free."""
    for parent in {tempfile.gettempdir(), "/tmp"}:  # noqa: S108
        for lock_path in Path(parent).glob(f"{_FOLDER_PREFIX}*/{_LOCK_NAME}"):
            with contextlib.suppress(OSError), open(lock_path, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                end_processes_of(str(lock_path.parent))
                shutil.rmtree(lock_path.parent, ignore_errors=True)


def ray_environment() -> dict[str, str]:
    """No usage statistics, and an access token, unless the user chose how Ray authenticates.

    Without a token any user of the machine could run code here as us. Left to itself, Ray keeps one in the home
    folder, where it changes how later clusters start.
    """
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if "ray" not in sys.modules and not os.environ.keys() & _TOKEN_VARIABLES:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return environment


def end_processes_of(folder: str) -> None:
    """Kill the processes with this folder, which is ours alone, in their command line: Ray's live in sessions of their own."""
    ours = [process for process in psutil.process_iter(["cmdline"]) if any(folder in word for word in process.info["cmdline"] or ())]
    ours = [process for process in ours if process.pid != os.getpid()]
    for process in ours:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(ours, timeout=_KILL_S)


def _init_ray(attempts: int, folder: str | None, options: dict[str, object]) -> None:
    """Connect or start; on a busy machine a start may take more than the 30 seconds that Ray gives itself."""
    import ray

    for attempt in range(1, attempts + 1):
        try:
            with _keeping_sigterm():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # Ray raises bare exceptions here
            ray.shutdown()
            if folder is None or attempt == attempts:
                raise DglError(f"cannot start or reach Ray: {error}") from error
            end_processes_of(folder)
            sys.stderr.write("Ray did not start in time; trying again\n")
        else:
            return


@contextlib.contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """A command's own handler of SIGTERM stays: Ray's, in Python and below it, would end the process without our exit code."""
    previous = signal.getsignal(signal.SIGTERM)
    yield
    if callable(previous) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, previous)


def _check_reachable(address: str) -> None:
    """Ray itself tries for many minutes before it says that nobody answers."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster at RAY_ADDRESS={address} ({error}); start it, or unset RAY_ADDRESS for a private one") from error
