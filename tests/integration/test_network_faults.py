"""Two ranks on two hosts whose network is slow, loses packets, is cut for a while or for good: `make test-network`."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dgl_scale.quickstart.processes import end_process_tree
from dgl_scale.run_folder import newest_complete
from tests.integration.network import ADDRESSES, INTERFACE, Network, everything, missing, nothing, only_port, two_hosts

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8
PORT = 29_500
# Longer than any part of a start on a busy machine.
HANG_S = 120
# Of what ends soon on an idle machine.
PATIENCE_S = 500

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(os.environ.get("DGL_TEST_NETWORK") != "1", reason="`make test-network` starts it"),
    pytest.mark.skipif(missing() is not None, reason=f"needs {missing()}"),
]


@dataclass(frozen=True)
class Training:
    """Two ranks that were started; what they print is in `logs`."""

    ranks: list[subprocess.Popen[bytes]]
    logs: list[Path]

    def wait(self, timeout_s: float) -> list[int]:
        """The exit codes."""
        deadline = time.monotonic() + timeout_s
        while any(rank.poll() is None for rank in self.ranks):
            assert time.monotonic() < deadline, f"after {timeout_s:.0f} s: {self.text}"
            time.sleep(0.1)
        return [rank.returncode for rank in self.ranks]

    @property
    def text(self) -> str:
        """For a message of pytest."""
        codes = [rank.poll() for rank in self.ranks]
        return "\n".join(f"--- ended with {code}:\n{log.read_text()}" for code, log in zip(codes, self.logs, strict=True))


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with two_hosts() as network:
        yield network


@pytest.fixture(autouse=True)
def mended(network: Network) -> None:
    """Each test begins with a network as it should be."""
    network.delay_s, network.loss, network.rule = 0.0, 0.0, everything
    network.set_tcp_retries(15)


@contextlib.contextmanager
def started_ranks(network: Network, command: list[str], output: Path, environment: dict[str, str]) -> Iterator[Training]:
    launch = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": str(PORT), "GLOO_SOCKET_IFNAME": INTERFACE}
    number = len([*output.glob("*.log")])
    logs = [output / f"{number}-rank-{rank}.log" for rank in (0, 1)]
    with contextlib.ExitStack() as stack:
        ranks = []
        for rank, log in enumerate(logs):
            stream = stack.enter_context(open(log, "wb"))
            process = subprocess.Popen(
                [*network.inside(rank), *command],
                cwd=ROOT,
                env={**environment, **launch, "RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
            stack.callback(process.wait)
            stack.callback(end_process_tree, process.pid, 0)
            ranks.append(process)
        yield Training(ranks, logs)


def started(
    network: Network, world: Path, output: Path, environment: dict[str, str], *more: str
) -> contextlib.AbstractContextManager[Training]:
    data = [f"data.{split}={world}/shards/{split}" for split in ("train", "validation", "test")]
    small = ["model.pretrained=null", "data.num_workers=0", "seed=3", f"output={output}", "training.global_batch_size=12"]
    small += [f"training.max_steps={STEPS}", "training.checkpoint_every_steps=2", "training.log_every_steps=1"]
    command = [sys.executable, "dgl_scale/train.py", "--config", "configs/quickstart.yaml", *small, *data, *more]
    return started_ranks(network, command, output, environment)


def wait_for_step(training: Training, output: Path, step: int) -> None:
    path, deadline = output / "quickstart" / "metrics.jsonl", time.monotonic() + PATIENCE_S
    while not path.exists() or f'"step": {step},' not in path.read_text():
        assert time.monotonic() < deadline and all(rank.poll() is None for rank in training.ranks), training.text
        time.sleep(0.01)


def state_of(output: Path) -> dict[str, torch.Tensor]:
    folder = output / "quickstart" / "checkpoints" / f"step-{STEPS:08d}"
    return load_file(folder / "prompts.safetensors") | load_file(folder / "optimizer.safetensors")


def is_equal(left: Path, right: Path) -> bool:
    expected, found = state_of(left), state_of(right)
    return expected.keys() == found.keys() and all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def finish(network: Network, world: Path, output: Path, environment: dict[str, str], *more: str) -> str:
    with started(network, world, output, environment, *more) as training:
        assert training.wait(PATIENCE_S) == [0, 0], training.text
        return training.text


@pytest.fixture(scope="module")
def undisturbed(network: Network, small_world: Path, engine_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    finish(network, small_world, output, engine_environment)
    return output


def test_a_slow_network_that_loses_packets_changes_nothing(
    network: Network, small_world: Path, engine_environment: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    network.delay_s, network.loss = 0.1, 0.01
    # What is logged and saved is gathered tensor by tensor, each in some tenths of a second.
    few = [f"training.{what}_every_steps={STEPS}" for what in ("log", "checkpoint")]
    lost = network.lost
    finish(network, small_world, tmp_path, engine_environment, *few)
    assert network.lost > lost
    assert is_equal(undisturbed, tmp_path)


def test_a_cut_of_half_a_minute_is_waited_for(
    network: Network, small_world: Path, engine_environment: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    with started(network, small_world, tmp_path, engine_environment) as training:
        wait_for_step(training, tmp_path, 5)
        network.rule = nothing
        time.sleep(30)
        assert not (tmp_path / "quickstart" / "checkpoints" / f"step-{STEPS:08d}").exists()
        network.rule = everything
        assert training.wait(PATIENCE_S) == [0, 0], training.text
    assert is_equal(undisturbed, tmp_path)


@pytest.mark.parametrize("patience", ["of the watchdog", "of the system"])
def test_a_cut_that_stays_ends_both_ranks_and_the_next_start_goes_on(
    network: Network, small_world: Path, engine_environment: dict[str, str], undisturbed: Path, tmp_path: Path, patience: str
) -> None:
    # The system repeats what is not acknowledged 15 times, which is a quarter of an hour.
    repetitions = {"of the watchdog": 15, "of the system": 5}[patience]
    network.set_tcp_retries(repetitions)
    with started(network, small_world, tmp_path, engine_environment, f"training.hang_timeout_s={HANG_S}") as training:
        wait_for_step(training, tmp_path, 5)
        network.rule = nothing
        assert training.wait(HANG_S + 40) == [1, 1], training.text
    for log in training.logs:
        (message,) = re.findall("^error: .*", log.read_text(), flags=re.MULTILINE)
        assert "(training.hang_timeout_s) and ends" in message or "or the network to it, is gone (connection timed out)" in message
        assert "run the same command to go on from the newest checkpoint" in message
    assert ("connection timed out" in training.text) == (patience == "of the system")
    newest, problems = newest_complete(tmp_path / "quickstart")
    assert newest is not None and not problems
    network.rule = everything
    assert "resumed quickstart at step" in finish(network, small_world, tmp_path, engine_environment)
    assert is_equal(undisturbed, tmp_path)


LEAVING = """
import sys
from dgl_scale.training.engine import start_distributed, stop_distributed
start_distributed("cpu", hang_timeout_s=5)
print("here", flush=True)
sys.stdin.readline()
stop_distributed(gracefully=True)
print("left")
"""


def test_a_cut_before_the_last_goodbye_does_not_fail_a_run_that_is_done(
    network: Network, engine_environment: dict[str, str], tmp_path: Path
) -> None:
    with started_ranks(network, [sys.executable, "-c", LEAVING], tmp_path, engine_environment) as training:
        deadline = time.monotonic() + PATIENCE_S
        while not all("here" in log.read_text() for log in training.logs):
            assert time.monotonic() < deadline, training.text
            time.sleep(0.1)
        network.rule = nothing
        for rank in training.ranks:
            rank.stdin.close()
        assert training.wait(PATIENCE_S) == [0, 0], training.text
    assert all("left" in log.read_text() for log in training.logs)


def test_hosts_between_which_only_the_meeting_place_is_open_are_told_so(
    network: Network, small_world: Path, engine_environment: dict[str, str], tmp_path: Path
) -> None:
    network.rule = only_port(PORT)
    with started(network, small_world, tmp_path, engine_environment, "training.rendezvous_timeout_s=20") as training:
        assert training.wait(PATIENCE_S) == [1, 1], training.text
    for rank, log in enumerate(training.logs):
        assert f"error: all ranks came to {ADDRESSES[0]}:{PORT}, but rank {rank} has no connection to the others" in log.read_text()
    assert not (tmp_path / "quickstart").exists()
