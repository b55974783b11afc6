"""A real Slurm of two nodes on this machine: its own munged, slurmctld and slurmds, on free ports, in one folder."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
START_S = 60.0

CONF = """
ClusterName=dgl
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=n1,n2 MaxTime=60 PriorityTier=9 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Slurm:
    """A running cluster.

    Attributes:
        environment: for commands of Slurm, with which they find it.
    """

    folder: Path
    environment: dict[str, str]

    def run(self, *words: str, check: bool = True) -> str:
        """Output of a command of Slurm."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """`RUNNING`, `PENDING`, `COMPLETED`, …"""
        words = self.run("scontrol", "show", "job", job, "--oneliner").split()
        return next(word.partition("=")[2] for word in words if word.startswith("JobState="))

    def restarts(self, job: str) -> int:
        """How often a job was put back into the queue."""
        words = self.run("scontrol", "show", "job", job, "--oneliner").split()
        return int(next(word.partition("=")[2] for word in words if word.startswith("Restarts=")))

    def wait_for(self, job: str, *states: str, timeout_s: float = 400.0) -> str:
        """Wait until the job is in one of these states; a requeued job is spared its two minutes of waiting."""
        deadline = time.monotonic() + timeout_s
        while (state := self.state(job)) not in states:
            assert time.monotonic() < deadline, f"job {job} is {state}, not {states}"
            if state == "PENDING":
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            time.sleep(0.5)
        return state


def missing_programs() -> list[str]:
    """What must be installed (Debian: slurm-wlm, munge), and root's rights."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return missing or ([] if os.geteuid() == 0 else ["root's rights"])


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[Slurm]:
    """Start it, and end all that was started."""
    (folder / "state").mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(128))
    os.chmod(folder / "munge.key", 0o400)
    os.chmod(folder, 0o755)
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, ports=free_ports(3)))
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    munged = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    munged += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]
    commands = [munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
    slurm = Slurm(folder, environment)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in enumerate(commands):
            with open(folder / f"{command[0]}-{number}.out", "wb") as stream:
                processes.append(subprocess.Popen(command, env=environment, stdout=stream, stderr=stream))
            wait_until(lambda: (folder / "munge.socket").exists(), "munged's socket")
        wait_until(lambda: slurm.run("sinfo", "-h", "-o", "%D %T", "-p", "low", check=False) == "2 idle", "two idle nodes")
        yield slurm
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that a start leads to."""
    deadline = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after {START_S:.0f} s"
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
