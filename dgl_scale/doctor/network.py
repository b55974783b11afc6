"""Checks of ports and of the hosts of a launch."""

import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dgl_scale import __version__
from dgl_scale.doctor.finding import Finding
from dgl_scale.training.hosts import read_hostfile, run_by_ssh

_MASTER_PORT = 29500
_SSH_TIMEOUT_S = 5.0
_ASK = "import time, dgl_scale; print(dgl_scale.__version__, time.time())"


def check_ports() -> Iterator[Finding]:
    """The port where `deepspeed` and `torchrun` let ranks meet, and this machine's name."""
    with socket.socket() as probe:
        try:
            probe.bind(("", _MASTER_PORT))
            yield Finding("port", "ok", f"{_MASTER_PORT} is free")
        except OSError as error:
            yield Finding("port", "warn", f"{_MASTER_PORT}: {error.strerror}", "give a launch another one: deepspeed --master_port N")


def check_hosts(hostfile: Path) -> Iterator[Finding]:
    """What `deepspeed --hostfile` needs of each host, all asked at once.

    Raises:
        ConfigError: the file is wrong.
    """
    hosts = read_hostfile(hostfile)
    if shutil.which("pdsh") is None:
        yield Finding("pdsh", "fail", "not installed", "apt install pdsh, or start ranks by srun or torchrun")
    else:
        yield Finding("pdsh", "ok", str(shutil.which("pdsh")))
    if len(hosts) > 1:
        yield check_own_address()
    with ThreadPoolExecutor(max_workers=64) as pool:
        yield from pool.map(check_host, hosts)


def check_own_address() -> Finding:
    """Ranks tell each other the address of their host's name: it must not be a loopback one."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return Finding("own address", "warn", f"{name} has none", "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, such as eth0")
    if address.startswith("127."):
        advice = "other hosts cannot reach it: mend /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, such as eth0"
        return Finding("own address", "warn", f"{name} is {address}", advice)
    return Finding("own address", "ok", f"{name} is {address}")


def check_host(host: str) -> Finding:
    """ssh without a password, the same Python environment at the same path, its version and its clock."""
    before = time.time()
    arguments = shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
    output, failure = run_by_ssh(host, [sys.executable, "-c", _ASK], timeout_s=_SSH_TIMEOUT_S, ssh_arguments=arguments)
    if failure is not None:
        advice = "ssh to it must work without a password, and find this environment at the same path"
        return Finding(f"host {host}", "fail", failure, advice)
    version, clock = output.split()[-2:]
    if version != __version__:
        return Finding(f"host {host}", "fail", f"dgl_scale {version} there, {__version__} here", "install the same on all hosts")
    skew = max(before - float(clock), float(clock) - time.time(), 0.0)
    if skew > 5:
        return Finding(f"host {host}", "warn", f"its clock is {skew:.0f} s off", "start an NTP service")
    return Finding(f"host {host}", "ok", f"dgl_scale {version}, answers in {time.time() - before:.1f} s")
