"""A small video world and its shards, made once by the commands that users run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def engine_environment() -> dict[str, str]:
    """What a virtual environment's shell would have."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory, engine_environment: dict[str, str]) -> Path:
    """A folder with `world/` (clips, annotations) and `shards/{train,validation,test}`."""
    from dgl_scale.quickstart.clips import make_world

    folder = tmp_path_factory.mktemp("small")
    make_world(folder / "world", 0, scale=0.05, workers=1)
    command = [sys.executable, "shard_tools/build.py", "--config", "configs/shards/quickstart.yaml"]
    command += [f"annotations={folder}/world/annotations.jsonl", f"videos={folder}/world", f"output={folder}/shards"]
    subprocess.run(command, cwd=ROOT, env=engine_environment, check=True, capture_output=True, timeout=200)
    return folder
