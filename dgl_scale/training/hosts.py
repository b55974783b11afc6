"""Hosts of a launch: the hostfile that `deepspeed` reads, and why a host cannot be reached."""

import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dgl_scale.errors import ConfigError

_LINE = re.compile(r"(\S+)\s+slots=(\d+)(\s.*)?")
_SSH_PORT = 22


def read_hostfile(path: Path) -> dict[str, int]:
    """Host to number of slots, in the file's order.

    Raises:
        ConfigError: the file is missing, empty, names a host twice, or has a line that is not `HOST slots=N`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read hostfile {path}: {getattr(error, 'strerror', None) or error}") from error
    slots: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or int(match.group(2)) == 0:
            raise ConfigError(f"{path}, line {number}: {line!r} is not of the form HOST slots=N")
        if match.group(1) in slots:
            raise ConfigError(f"{path}, line {number}: host {match.group(1)} occurs twice; add its slots up in one line")
        slots[match.group(1)] = int(match.group(2))
    if not slots:
        raise ConfigError(f"hostfile {path} names no host; write a line HOST slots=N for each")
    return slots


def why_unreachable(host: str, *, timeout_s: float) -> str | None:
    """Why no network leads to the host, or None. A host that refuses the connection is reached.

    Aliases of ssh's own config are followed, since `deepspeed` starts its processes by ssh.
    """
    name, port = _ssh_address(host)
    try:
        with socket.create_connection((name, port), timeout=timeout_s):
            return None
    except ConnectionRefusedError:
        return None
    except socket.gaierror:
        return "no such host name"
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except OSError as error:
        return (error.strerror or str(error)).lower()


def run_by_ssh(host: str, command: Sequence[str], *, timeout_s: float, ssh_arguments: Sequence[str] = ()) -> tuple[str, str | None]:
    """What `command` prints on the host, run by ssh without a password as `deepspeed` would; and why that failed, or None.

    Args:
        ssh_arguments: as in PDSH_SSH_ARGS_APPEND.
    """
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, round(timeout_s))}"]
    words = ["ssh", *options, *ssh_arguments, "--", host, shlex.join(command)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=6 * timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return "", f"no answer within {6 * timeout_s:g} s"
    except OSError as error:
        return "", f"ssh cannot be started: {error.strerror}"
    if done.returncode == 0:
        return done.stdout, None
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return done.stdout, said[-1] if said else f"{command[0]} ended with {done.returncode}"


def _ssh_address(host: str) -> tuple[str, int]:
    if shutil.which("ssh") is None or host.startswith("-"):
        return host, _SSH_PORT
    done = subprocess.run(["ssh", "-G", host], capture_output=True, text=True, timeout=10, check=False)
    settings = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    return settings.get("hostname", host), int(settings.get("port", _SSH_PORT))
