"""What the scripts of cluster/slurm are held to without a Slurm; test_slurm.py runs them under one."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "cluster" / "slurm").iterdir())
JOBS = [path for path in SCRIPTS if path.suffix == ".sbatch"]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_has_nothing_to_say() -> None:
    paths = [str(path) for path in [*SCRIPTS, ROOT / "cluster" / "site.env"]]
    done = subprocess.run(["shellcheck", "--external-sources", *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_is_short_and_stops_at_errors(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    assert "set -euo pipefail" in lines


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_without_a_config_says_how_it_is_used(path: Path) -> None:
    done = subprocess.run(["bash", str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "usage: " in done.stderr
    assert str(path.relative_to(ROOT)) in done.stderr
