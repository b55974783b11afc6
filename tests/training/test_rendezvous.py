import os
import subprocess
import sys
from pathlib import Path

import pytest

from dgl_scale.quickstart.processes import free_port
from dgl_scale.training.rendezvous import first_difference, missing_ranks

SCRIPT = Path(__file__).with_name("meet_rank.py")
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "SLURM_", "TORCHELASTIC_")


def run_ranks(environments: list[dict[str, str]], rates: list[str], timeout_s: float) -> list[tuple[int, str]]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), rate, str(timeout_s)],
            env={**plain, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment, rate in zip(environments, rates, strict=True)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return [(process.returncode, output.strip()) for process, output in zip(processes, outputs, strict=True)]


def plain_launch(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@pytest.mark.slow
def test_ranks_of_srun_meet_by_slurm_s_variables_alone() -> None:
    common = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    common |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_NODELIST": "localhost,other[3-4]"}
    environments = [{**common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    port = 10_000 + int(common["SLURM_JOB_ID"]) % 20_000
    assert run_ranks(environments, ["1", "1"], 60) == [(0, f"localhost:{port} 3")] * 2


@pytest.mark.slow
def test_a_rank_that_does_not_come_is_named_by_those_that_did() -> None:
    port = free_port()
    results = run_ranks([plain_launch(rank, 4, port) for rank in (0, 2)], ["1", "1"], 6)
    for code, output in results:
        assert code == 1
        assert output.startswith(f"DglError: ranks 1, 3 of 4 did not come to 127.0.0.1:{port} within 6 s")


@pytest.mark.slow
def test_ranks_started_with_different_configs_are_told_so_before_any_collective() -> None:
    port = free_port()
    results = run_ranks([plain_launch(rank, 3, port) for rank in range(3)], ["0.1", "0.1", "0.2"], 60)
    for code, output in results:
        assert code == 2
        assert output.startswith("ConfigError: rank 2 on ")
        assert output.endswith("was started with something else: optim.lr is 0.2 there and 0.1 on rank 0; give all ranks the same")


def test_differences_and_names() -> None:
    assert first_difference({"a": 1, "b": 2}, {"b": 2, "a": 1}) is None
    assert first_difference({"a": 1}, {"a": 1, "c": 3}) == "c is 3 there and None on rank 0"
    assert missing_ranks([1], None) == "rank 1"
    assert missing_ranks([2, 3], ["a", "a", "b", "b"]) == "ranks 2, 3 (b)"
    assert missing_ranks(list(range(20)), None) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 …"
