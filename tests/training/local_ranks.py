"""Ranks on this machine, started as a scheduler would: a process each, told by variables who it is."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dgl_scale.training.launch import free_port

ROOT = Path(__file__).resolve().parents[2]


def run_ranks(world: int, command: Sequence[str], *, timeout_s: float = 300) -> list[str]:
    """What each of `world` ranks that run `command` in the root of the repository writes to standard output; all must end with 0."""
    launch = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **launch, "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    written = [rank.communicate(timeout=timeout_s) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, "".join(written[0])[-3000:]
    return [output for output, _ in written]
