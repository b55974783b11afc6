"""A Ray of this machine alone: a folder and an access token of its own, a patient start, and a sure end."""

import contextlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator

import psutil

from dgl_scale.errors import DglError

_START_ATTEMPTS = 3
_OBJECT_STORE_BYTES = 256 << 20
# Unix sockets have at most 107 bytes; Ray puts about 60 below its folder.
_MAX_FOLDER_LENGTH = 40
_TOKEN_VARIABLES = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}


@contextlib.contextmanager
def private_ray(num_cpus: int) -> Iterator[None]:
    """Start Ray in this process's name, and end it with all its processes.

    Args:
        num_cpus: tickets that Ray hands out; more than there are cores is slow, not wrong.

    Raises:
        DglError: Ray does not start.
    """
    with private_ray_folder() as folder:
        # Ray reads its environment when it is imported, and remembers it: this is never undone.
        os.environ.update(ray_environment())
        options = {"num_cpus": num_cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES, "_temp_dir": folder}
        _start(folder, options)
        import ray

        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def private_ray_folder() -> Iterator[str]:
    """A new folder for a Ray; when the block is left, its processes are ended and the folder is removed."""
    folder = tempfile.mkdtemp(prefix="dgl-ray-")
    if len(folder) > _MAX_FOLDER_LENGTH:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="dgl-ray-", dir="/tmp")
    try:
        yield folder
    finally:
        end_processes_of(folder)
        shutil.rmtree(folder, ignore_errors=True)


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
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and any(folder in word for word in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _start(folder: str, options: dict[str, object]) -> None:
    """On a busy machine a start may take more than the 30 seconds that Ray gives itself."""
    import ray

    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # Ray raises bare exceptions here
            ray.shutdown()
            if attempt == _START_ATTEMPTS:
                raise DglError(f"cannot start Ray: {error}") from error
            end_processes_of(folder)
            sys.stderr.write("Ray did not start in time; trying again\n")
        else:
            return
