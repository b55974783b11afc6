"""Train for an hour with checkpoints and validations, and see whether memory, files and threads stay what they were.

    python tests/scripts/soak_training.py --minutes 60 --log soak.tsv

A line every half minute: steps, memory of each rank and of its reading workers, open files, threads. Ends with 1 where the
median memory of the last quarter is more than 3% above that of the second quarter, or files or threads have grown.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from kill_training import ROOT, make_shards, steps_done

from dgl_scale.quickstart.processes import end_process_tree, free_port

SECONDS_BETWEEN = 30.0
MAX_GROWTH = 1.03


def start(shards: Path, output: Path, ranks: int, minutes: float) -> "subprocess.Popen[bytes]":
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", str(ranks), "--master_port", str(free_port())]
    data = [f"data.{split}={shards}/{split}" for split in ("train", "validation", "test")]
    training = [f"max_minutes={minutes}", "max_steps=1000000", "global_batch_size=8", "checkpoint_every_steps=50", "log_every_steps=10"]
    other = ["model.pretrained=null", "model.num_frames=2", "data.num_workers=1", f"output={output}", "optim.lr=1e-4"]
    command = [*launcher, "dgl_scale/train.py", "--config", "configs/quickstart.yaml", *other, *data, *(f"training.{t}" for t in training)]
    with open(output.with_suffix(".log"), "wb") as stream:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream, start_new_session=True)


def measure(pid: int) -> dict[str, float]:
    processes = [process for process in psutil.Process(pid).children(recursive=True) if "python" in process.name()]
    return {
        "processes": len(processes),
        "memory_mib": sum(process.memory_info().rss for process in processes) / (1 << 20),
        "files": sum(process.num_fds() for process in processes),
        "threads": sum(process.num_threads() for process in processes),
    }


def watch(process: "subprocess.Popen[bytes]", run_folder: Path, log: Any) -> list[dict[str, float]]:
    begin, rows = time.monotonic(), []
    while True:
        try:
            process.wait(SECONDS_BETWEEN)
            return rows
        except subprocess.TimeoutExpired:
            rows.append({"minute": (time.monotonic() - begin) / 60, "steps": 10 * steps_done(run_folder), **measure(process.pid)})
            if len(rows) == 1:
                log.write("\t".join(rows[0]) + "\n")
            log.write("\t".join(f"{value:.1f}" if name == "minute" else f"{value:.0f}" for name, value in rows[-1].items()) + "\n")
            log.flush()


def has_grown(rows: list[dict[str, float]], log: Any) -> bool:
    quarter = max(1, len(rows) // 4)
    grown = False
    for name, limit in (("memory_mib", MAX_GROWTH), ("files", 1.0), ("threads", 1.0)):
        before = statistics.median(row[name] for row in rows[quarter : 2 * quarter])
        after = statistics.median(row[name] for row in rows[-quarter:])
        log.write(f"# {name}: {before:.0f} in the second quarter, {after:.0f} in the last ({100 * (after / before - 1):+.2f}%)\n")
        grown |= after > limit * before
    return grown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--shards", type=Path, help="folder of splits to train on (default: a small world is made)")
    parser.add_argument("--log", required=True, help="file for the log")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as parent, open(arguments.log, "w", encoding="utf-8") as log:
        shards = (arguments.shards or make_shards(Path(parent))).resolve()
        output = Path(parent, "output")
        process = start(shards, output, arguments.ranks, arguments.minutes)
        try:
            rows = watch(process, output / "quickstart", log)
        finally:
            end_process_tree(process.pid, grace_s=0)
        log.write(f"# {arguments.ranks} ranks, {arguments.minutes:g} minutes, ended with {process.returncode} (75: the time limit)\n")
        return 1 if process.returncode != 75 or has_grown(rows, log) else 0


if __name__ == "__main__":
    raise SystemExit(main())
