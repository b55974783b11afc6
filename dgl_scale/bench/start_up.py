"""How the start of a training run grows with the number of ranks: `dgl-scale bench start-up --world 1,64,1024`.

Ranks are simulated, without a model. The data plan is one rank's: the index of a split of made-up videos, the order of an epoch and
the rank's part of its batches, by the functions that training calls; what the kernel says was read is counted. The parts of all ranks
are joined and compared with the batches. For the meeting each rank is a thread with a connection of its own.
"""

import hashlib
import json
import resource
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dgl_scale.bench.model import describe_machine
from dgl_scale.data.index import load_split
from dgl_scale.data.order import EpochOrder, IntArray, rank_slice
from dgl_scale.entry import Parser, positive_int, positive_ints, require, run_command
from dgl_scale.errors import ExitCode
from dgl_scale.files import write_json
from dgl_scale.training.launch import free_port
from dgl_scale.training.rendezvous import meet_as

_VIDEOS_PER_SHARD = 1000
_SAMPLE_BYTES = 512
_ROUNDS = 3
_CONFIG_VALUES = 100
_MEETING_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Plan:
    """What the data plan of one rank took.

    Attributes:
        reads: calls of the kernel that read.
        read_bytes: by them.
        cpu_s: of all threads.
    """

    rank: int
    reads: int
    read_bytes: int
    cpu_s: float


@dataclass(frozen=True)
class _KernelCounts:
    """What this process has read, from the page cache too: calls and bytes before these counts were, and the bytes of these counts."""

    reads: int
    read_bytes: int
    own_bytes: int


@dataclass(frozen=True)
class StartUp:
    """A number of ranks.

    Attributes:
        plans: of the first rank and of the last.
        joins: whether the parts of all ranks are the batches, each pair once.
        meeting_s: until all ranks have met and compared their configs.
    """

    world_size: int
    plans: tuple[Plan, Plan]
    joins: bool
    meeting_s: float


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print; returns the exit code."""
    parser = Parser(prog="bench start-up", description="What the start of a run takes, by the number of ranks; these are simulated.")
    parser.add_argument(
        "--world", type=positive_ints, default=[1, 8, 64, 512, 1024], metavar="N,N,…", help="numbers of ranks (default 1,8,64,512,1024)"
    )
    parser.add_argument("--videos", type=positive_int, default=200_000, metavar="N", help="of the split (default 200000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments), debug=arguments.debug)


def _run(arguments: Namespace) -> int:
    require(sys.platform == "linux", "bench start-up reads the kernel's counts of what was read, which it can on Linux only")
    batch = max(arguments.world)
    require(arguments.videos >= batch, f"--videos {arguments.videos} are fewer than a batch of {batch}, a pair a rank")
    uneven = next((world for world in arguments.world if batch % world), None)
    require(uneven is None, f"--world {uneven} does not divide {batch}, the batch, which is the largest")
    # Each rank of the meeting has two ends of a connection in this process.
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    with tempfile.TemporaryDirectory(prefix="bench-start-up-") as name:
        write_split(Path(name), arguments.videos)
        plan_of_rank(name, batch, 0, 1)  # Loads what is loaded once.
        found = [_measure(name, batch, world) for world in arguments.world]
    sys.stdout.write(f"{arguments.videos:,} videos, batches of {batch}; simulated ranks\n\n")
    sys.stdout.write(f"{'ranks':>6}{'rank':>7}{'reads':>9}{'read bytes':>13}{'CPU s':>8}{'parts join':>12}{'meeting, s':>12}\n")
    for one in found:
        for plan in one.plans:
            row = f"{one.world_size:>6}{plan.rank:>7}{plan.reads:>9,}{plan.read_bytes:>13,}{plan.cpu_s:>8.2f}"
            sys.stdout.write(f"{row}{'yes' if one.joins else 'NO':>12}{one.meeting_s:>12.2f}\n")
    if arguments.json:
        figures = {"machine": describe_machine("cpu"), "videos": arguments.videos, "figures": [asdict(one) for one in found]}
        write_json(arguments.json, figures)
    return ExitCode.DONE if all(one.joins for one in found) else ExitCode.FAILED


def plan_of_rank(split: str, batch_size: int, rank: int, world_size: int) -> tuple[Plan, list[IntArray]]:
    """A rank's plan of the first epoch, and its parts of the batches, each int64 `[b, 2]` of (video, caption).

    The least of three rounds is counted: the kernel counts other threads too, such as one whose allocator asks once for the CPUs.
    """
    rounds = [_plan_once(split, batch_size, rank, world_size) for _ in range(_ROUNDS)]
    plans = [plan for plan, _ in rounds]
    least = Plan(rank, min(plan.reads for plan in plans), min(plan.read_bytes for plan in plans), min(plan.cpu_s for plan in plans))
    return least, rounds[0][1]


def _plan_once(split: str, batch_size: int, rank: int, world_size: int) -> tuple[Plan, list[IntArray]]:
    before, cpu_s = _kernel_counts(), time.process_time()
    index = load_split(split)
    batches = EpochOrder(index.num_captions, 0, batch_size, "drop").batches(0)
    parts = [part for batch in batches for part in rank_slice(batch, rank, world_size, None)]
    cpu_s = time.process_time() - cpu_s
    after = _kernel_counts()
    return Plan(rank, after.reads - before.reads - 1, after.read_bytes - before.read_bytes - before.own_bytes, cpu_s), parts


def join_parts(batches: IntArray, world_size: int) -> bool:
    """Whether the parts of all ranks are the batches, int64 `[n, B, 2]`, and hold no pair twice."""
    joined = [
        np.concatenate([part for rank in range(world_size) for part in rank_slice(batch, rank, world_size, None)]) for batch in batches
    ]
    pairs = np.concatenate(joined)
    return np.array_equal(np.stack(joined), batches) and len(np.unique(pairs, axis=0)) == len(pairs)


def meeting_seconds(world_size: int) -> float:
    """How long so many ranks take to meet, each a thread with a connection of its own.

    Raises:
        DglError: they did not.
    """
    facts = {f"section.key_{number}": number for number in range(_CONFIG_VALUES)}
    address = ("127.0.0.1", free_port())
    # Rank 0's store serves the others until all of them have met.
    stores: list[Any] = []
    errors: list[BaseException] = []

    def come(rank: int) -> None:
        try:
            stores.append(meet_as(rank, world_size, address, facts, _MEETING_TIMEOUT_S))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=come, args=(rank,), daemon=True) for rank in range(world_size)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return time.perf_counter() - begin


def write_split(folder: Path, num_videos: int) -> None:
    """The lists of a split of `num_videos` made-up videos with a caption each; its tars have a size and no content."""
    import pyarrow
    import pyarrow.parquet

    listed = []
    for number, first in enumerate(range(0, num_videos, _VIDEOS_PER_SHARD)):
        videos = range(first, min(first + _VIDEOS_PER_SHARD, num_videos))
        rows = [_row(video, video - first) for video in videos]
        name = f"synthetic-train-{number:06d}"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}.parquet")
        size = _SAMPLE_BYTES * len(rows)
        with (folder / f"{name}.tar").open("wb") as stream:
            stream.truncate(size)
        listed.append({"url": f"{name}.tar", "nsamples": len(rows), "filesize": size, "sha256": hashlib.sha256(name.encode()).hexdigest()})
    write_json(folder / "index.json", {"wids_version": 1, "shardlist": listed})


def _row(video: int, place: int) -> dict[str, object]:
    digest = hashlib.sha256(json.dumps(video).encode()).hexdigest()
    key = f"{video:09d}-video"
    sizes = {"offset": _SAMPLE_BYTES * place, "size": _SAMPLE_BYTES, "n_frames": 30, "n_captions": 1}
    return {"key": key, "video_id": key, "status": "ok", **sizes, "sha256": digest}


def _measure(split: str, batch_size: int, world_size: int) -> StartUp:
    plans = tuple(plan_of_rank(split, batch_size, rank, world_size)[0] for rank in (0, world_size - 1))
    batches = EpochOrder(load_split(split).num_captions, 0, batch_size, "drop").batches(0)
    return StartUp(world_size, plans, join_parts(batches, world_size), meeting_seconds(world_size))  # type: ignore[arg-type]


def _kernel_counts() -> _KernelCounts:
    with open("/proc/self/io", "rb", buffering=0) as stream:
        text = stream.read(4096) or b""
    counts = {key: int(value) for key, value in (line.split(b": ") for line in text.splitlines())}
    return _KernelCounts(counts[b"syscr"], counts[b"rchar"], len(text))


if __name__ == "__main__":
    sys.exit(main())
