"""`deepspeed --hostfile` over real ssh: two hosts that are two addresses of this machine's loopback interface.

The ssh server, its keys and its clients' settings live in a temporary folder; nobody's ~/.ssh is read or written.
"""

import getpass
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgl_scale.quickstart.processes import free_port
from dgl_scale.training.hosts import run_by_ssh

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ("127.0.0.2", "127.0.0.3")
ALIASES = ("dgl-node-a", "dgl-node-b")
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
PRIVILEGE_FOLDER = Path("/run/sshd")  # a constant of Debian's sshd, which refuses to start as root without it

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SSHD and shutil.which("pdsh") and shutil.which("ssh")), reason="needs sshd, ssh and pdsh"),
]


@pytest.fixture(scope="module")
def ssh_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A client config that leads to a server of our own on both addresses."""
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    port = free_port()
    server = ["StrictModes no", "UsePAM no", "PasswordAuthentication no", "PermitRootLogin yes", f"PidFile {folder}/pid"]
    server += [f"HostKey {folder}/host_key", f"AuthorizedKeysFile {folder}/authorized_keys", f"Port {port}"]
    server += [f"ListenAddress {host}" for host in HOSTS] + ["SetEnv DS_ACCELERATOR=cpu OMP_NUM_THREADS=1"]
    (folder / "sshd_config").write_text("\n".join(server) + "\n")
    client = [f"Port {port}", f"User {getpass.getuser()}", f"IdentityFile {folder}/user_key", "IdentitiesOnly yes", "LogLevel ERROR"]
    client += [f"UserKnownHostsFile {folder}/known_hosts", "GlobalKnownHostsFile none", "StrictHostKeyChecking accept-new"]
    # Names that only ssh knows: mpirun takes every address of the loopback interface for this host, and would not use ssh.
    aliases = [line for alias, host in zip(ALIASES, HOSTS, strict=True) for line in (f"Host {alias}", f"HostName {host}")]
    (folder / "config").write_text("\n".join([*aliases, "Host *", *client]) + "\n")
    made = os.geteuid() == 0 and not PRIVILEGE_FOLDER.exists()
    if made:
        PRIVILEGE_FOLDER.mkdir(mode=0o755)
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while any(run_by_ssh(host, ["true"], timeout_s=5, ssh_arguments=["-F", str(folder / "config")])[1] for host in HOSTS):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "the ssh server does not answer"
            time.sleep(0.2)
        yield folder / "config"
    finally:
        process.terminate()
        process.communicate(timeout=30)
        if made:
            PRIVILEGE_FOLDER.rmdir()


def deepspeed(hosts: tuple[str, ...], folder: Path, ssh_config: Path, environment: dict[str, str], *words: str) -> tuple[int, str]:
    (folder / "hosts").write_text("".join(f"{host} slots=1\n" for host in hosts))
    # DeepSpeed's own check calls plain ssh, which would read ~/.ssh.
    launcher = ["--hostfile", str(folder / "hosts"), "--no_ssh_check", "--master_addr", HOSTS[0], "--master_port", str(free_port())]
    environment = {**environment, "PDSH_SSH_ARGS_APPEND": shlex.join(["-F", str(ssh_config)]), "DS_ENV_FILE": str(folder / "passed_on")}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("deepspeed")), *launcher, *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout


def training(folder: Path, *overrides: str) -> list[str]:
    small = ["model.pretrained=null", "training.global_batch_size=12", "training.max_steps=2"]
    return ["dgl_scale/train.py", "--config", "configs/quickstart.yaml", *small, f"output={folder}", *overrides]


def test_two_hosts_train_one_model(small_world: Path, engine_environment: dict[str, str], ssh_config: Path, tmp_path: Path) -> None:
    data = [f"data.train={small_world}/shards/train", "data.validation=null", "data.test=null"]
    code, text = deepspeed(HOSTS, tmp_path, ssh_config, engine_environment, *training(tmp_path, *data))
    assert code == 0, text
    assert f"{HOSTS[0]}: quickstart: " in text
    assert "2 ranks, micro-batch 6" in text
    assert f"{HOSTS[1]}: " in text
    assert (tmp_path / "quickstart" / "checkpoints" / "step-00000002" / "prompts.safetensors").exists()


def test_a_host_that_is_not_there_is_named(engine_environment: dict[str, str], ssh_config: Path, tmp_path: Path) -> None:
    words = training(tmp_path, "--dry-run", "data.train=null")
    code, text = deepspeed((HOSTS[0], "no-such-host.invalid"), tmp_path, ssh_config, engine_environment, *words)
    assert code != 0
    assert "waiting for rank 1 (no-such-host.invalid); no-such-host.invalid: no such host name" in text
    assert f"error: rank 1 (no-such-host.invalid) of 2 did not come to {HOSTS[0]}:" in text
    assert "Traceback" not in text


def test_what_ranks_on_other_hosts_see_of_the_environment(engine_environment: dict[str, str], ssh_config: Path, tmp_path: Path) -> None:
    (tmp_path / "passed_on").write_text("GLOO_SOCKET_IFNAME=lo\nHF_HOME=/data/hf\n")
    environment = engine_environment | {"PYTHON_OURS": "1", "UCX_OURS": "2", "AWS_OURS": "3", "OMP_OURS": "4"}
    # printenv in the place of the ranks.
    code, text = deepspeed(HOSTS, tmp_path, ssh_config, environment, "--no_python", "--no_local_rank", "printenv")
    assert code == 0, text
    for host in HOSTS:
        seen = {line.removeprefix(f"{host}: ") for line in text.splitlines() if line.startswith(f"{host}: ")}
        assert {"GLOO_SOCKET_IFNAME=lo", "HF_HOME=/data/hf", "PYTHON_OURS=1", "UCX_OURS=2", f"PYTHONPATH={ROOT}"} <= seen, text
        assert not {"AWS_OURS=3", "OMP_OURS=4"} & seen


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs Open MPI")
def test_open_mpi_starts_the_ranks(engine_environment: dict[str, str], ssh_config: Path, tmp_path: Path) -> None:
    passed_on = ["DS_ACCELERATOR=cpu", "OMP_NUM_THREADS=1", "MASTER_ADDR=127.0.0.1", f"MASTER_PORT={free_port()}"]
    (tmp_path / "passed_on").write_text("\n".join(passed_on) + "\n")
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    ssh = ["--mca", "btl_tcp_if_include", "lo", "--mca", "oob_tcp_if_include", "lo", "--mca", "plm_rsh_args", f"-F {ssh_config}"]
    words = ["--launcher", "openmpi", "--launcher_args", shlex.join(ssh), *training(tmp_path, "--dry-run", "data.train=null")]
    code, text = deepspeed(ALIASES, tmp_path, ssh_config, engine_environment | as_root, *words)
    assert code == 0, text
    assert "global batch 12 = 2 ranks" in text
    known = (ssh_config.parent / "known_hosts").read_text()
    assert all(f"[{host}]" in known for host in HOSTS)
