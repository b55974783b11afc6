"""Kill builds again and again, at random moments, and compare what they leave with an undisturbed build.

    python tests/scripts/kill_builds.py --count 200 --seed 0 --log kills.tsv

Each kill is SIGKILL to one process: a worker that builds a shard, its decoding process, the driver, or a process
of Ray itself (raylet, gcs_server). A build that ends by it is started again, as a user would. Ends with 1 unless
every finished build has exactly the bytes of the undisturbed one and no temporary file.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"worker": 50, "decoder": 43, "driver": 4, "ray": 3}
NUM_DIFFERENT = 20
WAIT_S = 300.0
POLL_S = 0.2
CONFIG = """
dataset: kills
format: table
annotations: {folder}/annotations.jsonl
videos: {folder}
output: {output}
frames: {{fps: 10, short_side: 64}}
max_samples_per_shard: 6
max_shard_bytes: 1000000
max_failed_fraction: 0.2
"""


@dataclass
class Run:
    """A build that is being killed."""

    process: "subprocess.Popen[str]"
    started: float
    error: Path
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    def processes(self) -> list[psutil.Process]:
        """The build's processes that run now; all that were ever seen are remembered."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self.seen.setdefault(child.pid, child)
        return [child for child in self.seen.values() if child.is_running()]

    def targets(self, kind: str) -> list[psutil.Process]:
        if kind == "driver":
            return [psutil.Process(self.process.pid)] if self.process.poll() is None else []
        found = []
        for child in self.processes():
            with contextlib.suppress(psutil.Error):
                words = child.cmdline()
                if kind_of(words) == kind and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
        return found


def kind_of(words: list[str]) -> str:
    if words and words[0].startswith("ray::kills-"):
        return "worker"
    if "shard_tools.decoder" in words:
        return "decoder"
    return "ray" if words and Path(words[0]).name in {"raylet", "gcs_server"} else ""


def make_videos(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for index in range(min(count, NUM_DIFFERENT)):
        with av.open(str(folder / f"{index}.mp4"), "w") as container:
            stream: Any = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt, stream.thread_count = 128, 96, "yuv420p", 1
            for _ in range(20 + index % 7):
                picture = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
    for index in range(count):
        if index >= NUM_DIFFERENT:
            shutil.copy(folder / f"{index % NUM_DIFFERENT}.mp4", folder / f"{index}.mp4")
        rows.append({"path": f"{index}.mp4", "captions": [f"clip {index}"]})
    (folder / "text.mp4").write_text("no video")
    rows.append({"path": "text.mp4", "captions": ["c"]})
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def start(folder: Path, output: Path) -> Run:
    config = output.with_suffix(".yaml")
    config.write_text(CONFIG.format(folder=folder, output=output))
    command = [sys.executable, str(ROOT / "shard_tools" / "build.py"), "--config", str(config), "--num-cpus", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # Whatever is left behind, Ray's folders too, is left where it is looked for.
    environment["TMPDIR"] = str(folder.parent / "tmp")
    # A driver waits a minute for a gcs_server that is gone.
    environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "5"
    error = output.with_suffix(".err")
    with open(error, "w") as stream:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream, text=True, env=environment)
    return Run(process, time.monotonic(), error)


def files(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}


def kill_one(run: Run, kind: str, rng: random.Random, usual_s: float) -> str | None:
    """Kill a process of this kind at a random moment of the build; None if the build ends before."""
    due = time.monotonic() + rng.uniform(0.0, usual_s / 3) if kind in {"driver", "ray"} else None
    while run.process.poll() is None:
        now = time.monotonic()
        if due is not None and now < due:
            time.sleep(min(due - now, POLL_S))
            continue
        targets = run.targets(kind)
        if targets and due is None:
            # Shards come one after the other; any moment soon is in the midst of one.
            due = now + rng.uniform(0.0, 0.5)
        elif targets:
            victim = rng.choice(targets)
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                words = victim.cmdline()
                victim.kill()
                return {"driver": "driver", "decoder": "decoder"}.get(kind, Path(words[0]).name)
        else:
            # Looking costs as much as a build's own work, if it is done all the time.
            time.sleep(POLL_S)
    return None


def torment(folder: Path, count: int, seed: int, kinds: list[str], log: Any) -> int:
    """Kill `count` times; returns how many finished builds differed."""
    rng = random.Random(seed)
    reference_run = start(folder, folder.parent / "reference")
    assert reference_run.process.wait(WAIT_S) == 0, reference_run.error.read_text()
    usual_s = time.monotonic() - reference_run.started
    reference = files(folder.parent / "reference")
    log.write(
        f"# seed {seed}; an undisturbed build: {len(reference)} files, {sum(map(len, reference.values())):,} bytes, {usual_s:.1f} s\n"
    )
    log.write("kill\tbuild\tprocess\tsecond\tshards done\tresult\n")
    kills = builds = wrong = 0
    while kills < count:
        builds += 1
        output = folder.parent / f"build-{builds}"
        run = start(folder, output)
        while True:
            (kind,) = rng.choices(kinds, [TARGETS[kind] for kind in kinds])
            victim = kill_one(run, kind, rng, usual_s) if kills < count else None
            if victim is None:
                code = run.process.wait(WAIT_S)
            else:
                kills += 1
                second, done = time.monotonic() - run.started, len(list(output.glob("*/*.parquet")))
                if kind in {"driver", "ray"}:
                    code = run.process.wait(WAIT_S)
                    result = f"ended with {code}, started again" if code else "done all the same"
                else:
                    code, result = None, "goes on"
                log.write(f"{kills}\t{builds}\t{victim}\t{second:.2f}\t{done}\t{result}\n")
                log.flush()
            if code is None:
                continue
            if code == 0:
                break
            run = start(folder, output)
        found = files(output) | files(folder.parent / "tmp")
        same = found == reference
        wrong += not same
        different = sorted(name for name in found.keys() | reference.keys() if found.get(name) != reference.get(name))[:9]
        log.write(f"# build {builds}: {'the same bytes, no temporary files' if same else f'DIFFERENT: {different}'}\n")
        log.flush()
        shutil.rmtree(output)
    log.write(f"# {kills} kills in {builds} builds: {wrong} differ\n")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--videos", type=int, default=150, help="of a build")
    parser.add_argument("--kinds", nargs="+", choices=list(TARGETS), default=list(TARGETS), help="processes to kill")
    parser.add_argument("--log", help="file for the log (default: standard output)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="k") as parent, contextlib.ExitStack() as stack:
        log = stack.enter_context(open(arguments.log, "w", encoding="utf-8")) if arguments.log else sys.stdout
        folder = Path(parent, "videos")
        folder.mkdir()
        Path(parent, "tmp").mkdir()
        make_videos(folder, arguments.videos)
        return 1 if torment(folder, arguments.count, arguments.seed, arguments.kinds, log) else 0


if __name__ == "__main__":
    raise SystemExit(main())
