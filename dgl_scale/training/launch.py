"""What a launcher says of this process: its rank, how many there are, where they meet, and which hosts they are on.

`deepspeed` and `torchrun` set PyTorch's variables; `srun` and Open MPI's `mpirun` set their own, from which they follow; without a launcher
there is one rank.
"""

import base64
import binascii
import contextlib
import json
import re
import socket
from collections.abc import MutableMapping

import psutil

from dgl_scale.errors import ConfigError

# Below the range from which systems give out ports by themselves (32768 on Linux), above what services use.
_FIRST_PORT, _NUM_PORTS = 10_000, 20_000
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def describe_launch(environment: MutableMapping[str, str]) -> None:
    """Set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT where no launcher has.

    Raises:
        ConfigError: a launcher has set some of them only, or values that are no numbers.
    """
    if "RANK" in environment:
        environment.setdefault("LOCAL_RANK", "0")
    elif "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        _describe_slurm_step(environment)
    elif "OMPI_COMM_WORLD_RANK" in environment:
        _describe_mpi_process(environment)
    else:
        port = str(free_port())
        environment.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
    if missing := [name for name in _NEEDED if not environment.get(name)]:
        raise ConfigError(f"the launcher set RANK but not {', '.join(missing)}; set all of {', '.join(_NEEDED)}, or none")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        if not environment[name].isdecimal():
            raise ConfigError(f"{name} is {environment[name]!r}, and must be a number; the launcher sets it")
    if not int(environment["RANK"]) < int(environment["WORLD_SIZE"]):
        raise ConfigError(f"RANK {environment['RANK']} is not below WORLD_SIZE {environment['WORLD_SIZE']}; the launcher sets them")


def first_host(nodelist: str) -> str:
    """The first host of Slurm's compact form, such as `gpu[07-09,12],login1` or `r[1-2]n[3-4]`."""
    first = re.split(r",(?![^\[]*\])", nodelist)[0]
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first)


def hosts_by_rank(world_size: int) -> list[str] | None:
    """The host of each rank as `deepspeed` was told them; None under other launchers.

    Its process on each host is the parent of the ranks and has the hostfile's content among its arguments.
    """
    with contextlib.suppress(psutil.Error, IndexError, ValueError, binascii.Error, AttributeError):
        (encoded,) = [word for word in psutil.Process().parents()[0].cmdline() if word.startswith("--world_info=")]
        slots = json.loads(base64.urlsafe_b64decode(encoded.partition("=")[2]))
        hosts = [host for host, devices in slots.items() for _ in devices]
        return hosts if len(hosts) == world_size else None
    return None


def _describe_mpi_process(environment: MutableMapping[str, str]) -> None:
    if not (environment.get("MASTER_ADDR") and environment.get("MASTER_PORT")):
        raise ConfigError(
            "mpirun does not say where ranks meet; pass on MASTER_ADDR (the first host) and MASTER_PORT, as in .deepspeed_env"
        )
    for name, theirs in (("RANK", "RANK"), ("LOCAL_RANK", "LOCAL_RANK"), ("WORLD_SIZE", "SIZE")):
        environment[name] = environment[f"OMPI_COMM_WORLD_{theirs}"]


def _describe_slurm_step(environment: MutableMapping[str, str]) -> None:
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    environment["WORLD_SIZE"] = environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"]
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    if nodes:
        environment.setdefault("MASTER_ADDR", first_host(nodes))
    if job := environment.get("SLURM_JOB_ID", ""):
        # All ranks of a step compute the same port; steps that run beside it in the job get others.
        number = int(job) + 7 * int(environment["SLURM_STEP_ID"])
        environment.setdefault("MASTER_PORT", str(_FIRST_PORT + number % _NUM_PORTS))


def free_port() -> int:
    """A port of the loopback interface that was free a moment ago."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
