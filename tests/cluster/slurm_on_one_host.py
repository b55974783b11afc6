"""A real Slurm on this machine: its own munged, slurmctld and slurmds, on free ports, in one folder.

Two nodes are for jobs of two, a third for what runs beside them. Each has an address and, as nodes do, a /tmp of its own.
"""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare")
NODES = ("n1", "n2", "n3")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
START_S = 120.0

CONF = """
ClusterName=dgl
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
FirstJobId={first_job}
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
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.2 Port={ports[1]} CPUs=4
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.3 Port={ports[2]} CPUs=4
NodeName=n3 NodeHostname=localhost NodeAddr=127.0.0.4 Port={ports[3]} CPUs=4
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=n1,n2 MaxTime=60 PriorityTier=9 PreemptMode=OFF
PartitionName=beside Nodes=n3 MaxTime=60 PriorityTier=1 PreemptMode=OFF
"""

# $1 becomes /tmp, in which the other folders before -- stay what they are for all; then the command.
IN_A_TMP_OF_ITS_OWN = """
set -e
tmp=$1
shift
while [ "$1" != -- ]; do
  mkdir -p "$tmp${1#/tmp}"
  mount --bind "$1" "$tmp${1#/tmp}"
  shift
done
shift
mount --rbind "$tmp" /tmp
exec "$@"
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

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says: `JobState`, `Restarts`, `ExitCode`, …"""
        words = self.run("scontrol", "show", "job", job, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: str) -> str:
        """`RUNNING`, `PENDING`, `COMPLETED`, …"""
        return self.job(job)["JobState"]

    def restarts(self, job: str) -> int:
        """How often a job was put back into the queue."""
        return int(self.job(job)["Restarts"])

    def wait_for(self, job: str, state: str, timeout_s: float = 500.0) -> None:
        """Wait until the job is in this state; a requeued job is spared its two minutes of waiting."""
        deadline, ended = time.monotonic() + timeout_s, 0.0
        while (found := self.state(job)) != state:
            if found == "PENDING" and self.job(job)["Reason"] == "BeginTime":
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            # A job on its way back into the queue may be FAILED for a moment.
            ended = (ended or time.monotonic()) if found in ENDED else 0.0
            assert time.monotonic() < min(deadline, (ended or deadline) + 15), f"job {job} is {found}, not {state}: {self.job(job)}"
            time.sleep(0.5)


def missing_programs() -> list[str]:
    """What must be installed (Debian: slurm-wlm, munge), and rights."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return missing
    if os.geteuid() != 0:
        return ["root's rights"]
    may_mount = subprocess.run(["unshare", "--mount", "mount", "--bind", "/tmp", "/tmp"], capture_output=True, check=False)
    return [] if may_mount.returncode == 0 else ["the right to mount"]


@contextlib.contextmanager
def slurm_cluster(folder: Path, shared: Sequence[Path]) -> Iterator[Slurm]:
    """Start it, and end all that was started.

    Args:
        folder: empty; for its settings, state and logs.
        shared: folders that all nodes see, as on a cluster's common disk. Those that are not below /tmp are anyway.
    """
    (folder / "state").mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(128))
    os.chmod(folder / "munge.key", 0o400)
    os.chmod(folder, 0o755)
    # Ports of jobs follow from their numbers: not those of another such cluster.
    settings = CONF.format(folder=folder, ports=free_ports(1 + len(NODES)), first_job=random.randrange(1000, 20000))
    (folder / "slurm.conf").write_text(settings)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    munged = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    munged += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]
    slurmds = [[*in_own_tmp(folder / f"tmp-{node}", [folder, *shared]), "slurmd", "-D", "-N", node] for node in NODES]
    slurm = Slurm(folder, environment)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in enumerate([munged, ["slurmctld", "-D", "-c"], *slurmds]):
            with open(folder / f"start-{number}.out", "wb") as stream:
                processes.append(subprocess.Popen(command, env=environment, stdout=stream, stderr=stream))
            wait_until(lambda: (folder / "munge.socket").exists(), "munged's socket")
        wait_until(lambda: slurm.run("sinfo", "-h", "-o", "%D %T", "-p", "low", check=False) == "2 idle", "two idle nodes")
        yield slurm
    finally:
        slurm.run("scancel", "--full", "--signal=KILL", "--user=root", check=False)
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        for process in processes_with("SLURM_CONF", str(folder / "slurm.conf")):
            process.kill()


def in_own_tmp(tmp: Path, shared: Sequence[Path]) -> list[str]:
    """The words before a command by which it sees `tmp` in the place of /tmp."""
    tmp.mkdir(mode=0o1777)
    below = [str(path) for path in shared if path.is_relative_to("/tmp")]
    return ["unshare", "--mount", "sh", "-c", IN_A_TMP_OF_ITS_OWN, "sh", str(tmp), *below, "--"]


def processes_with(name: str, value: str) -> list[psutil.Process]:
    """Those that have this variable in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
    return found


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
