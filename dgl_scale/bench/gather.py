"""Gathering the features of all ranks for the loss: bytes and time by the number of ranks: `dgl-scale bench gather --world 2,4,8,16`.

Real processes over gloo call what a training step calls. Beside it, in the same run: one bare all-gather of the same bytes, which is
the limit of the transport, and a copy of what arrives, which is the limit of memory. Ranks are forked, so that many of them start soon.
"""

import json
import multiprocessing
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from dgl_scale import distributed
from dgl_scale.bench.model import describe_machine
from dgl_scale.bench.network_rank import sent_bytes
from dgl_scale.entry import Parser, positive_int, positive_ints, require, run_command
from dgl_scale.errors import DglError, ExitCode
from dgl_scale.files import write_json
from dgl_scale.training.launch import free_port
from dgl_scale.training.loss import gather_features
from dgl_scale.training.network import network_bytes

_WARM_UP = 2
_TIMEOUT_S = 600
_ALL_GATHER, _COPY = "bare all-gather", "copy"


@dataclass(frozen=True)
class Cost:
    """Of one gathering, the mean over ranks and steps.

    Attributes:
        sent_bytes: by one rank.
        seconds: by the clock, all ranks at work on this machine.
        cpu_s: of one rank, all its threads.
    """

    sent_bytes: float
    seconds: float
    cpu_s: float


@dataclass(frozen=True)
class Gathering:
    """A number of ranks.

    Attributes:
        formula_bytes: that a rank should send.
        ours: `gather_features`.
        limits: by name.
    """

    world_size: int
    formula_bytes: float
    ours: Cost
    limits: dict[str, Cost]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print; returns the exit code."""
    parser = Parser(prog="bench gather", description="Measure the gathering of features beside a bare all-gather and a copy.")
    parser.add_argument("--world", type=positive_ints, default=[2, 4, 8, 16], metavar="N,N,…", help="numbers of ranks (default 2,4,8,16)")
    parser.add_argument("--pairs", type=positive_int, default=64, metavar="N", help="a rank (default 64)")
    parser.add_argument("--width", type=positive_int, default=768, metavar="N", help="components of a feature (default 768, as ViT-L/14)")
    parser.add_argument("--steps", type=positive_int, default=10, metavar="N", help="measured ones (default 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments), debug=arguments.debug)


def _run(arguments: Namespace) -> int:
    require(sys.platform == "linux", "bench gather reads the kernel's counts of its connections, which it can on Linux only")
    require(min(arguments.world) > 1, "--world 1 has nothing to gather; take 2 or more")
    found = measure(sorted(set(arguments.world)), arguments.pairs, arguments.width, arguments.steps)
    sys.stdout.write(f"gathering {arguments.pairs} pairs a rank of 2 x {arguments.width} float32; a rank and step\n\n")
    _print(found)
    if arguments.json:
        figures = {"machine": describe_machine("cpu"), "pairs": arguments.pairs, "width": arguments.width, "steps": arguments.steps}
        write_json(arguments.json, {**figures, "figures": [asdict(one) for one in found]})
    return ExitCode.DONE


def measure(worlds: Sequence[int], pairs: int, width: int, steps: int) -> list[Gathering]:
    """Fork as many ranks as the largest of `worlds` has, which measure one number after the other.

    Raises:
        DglError: a rank failed or did not end.
    """
    port, context = free_port(), multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="bench-gather-") as folder, ExitStack() as stack:
        output = Path(folder) / "found.json"
        processes = [
            context.Process(target=_rank, args=(rank, worlds, (pairs, width, steps), port, output), daemon=True)
            for rank in range(max(worlds))
        ]
        for process in processes:
            process.start()
            stack.callback(process.kill)
        deadline = time.monotonic() + _TIMEOUT_S
        for rank, process in enumerate(processes):
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                raise DglError(f"rank {rank} has not ended after {_TIMEOUT_S} s; take fewer ranks or smaller features")
            if process.exitcode:
                raise DglError(f"rank {rank} ended with exit code {process.exitcode}; its own words are above")
        costs = json.loads(output.read_text(encoding="utf-8"))
    found = []
    for world, by_name in zip(worlds, costs, strict=True):
        ours, *limits = ((name, Cost(**cost)) for name, cost in by_name.items())
        formula = network_bytes(0, world, pairs, width, 0, 0, 0, 4).features
        found.append(Gathering(world, formula, ours[1], dict(limits)))
    return found


def _rank(rank: int, worlds: Sequence[int], sizes: tuple[int, int, int], port: int, output: Path) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=_TIMEOUT_S)
    store = TCPStore("127.0.0.1", port, is_master=rank == 0, timeout=timeout, wait_for_workers=False)
    found = []
    for world in worlds:
        if rank >= world:
            continue
        dist.init_process_group("gloo", store=PrefixStore(str(world), store), rank=rank, world_size=world, timeout=timeout)
        found.append(_costs(*sizes))
        dist.barrier()
        dist.destroy_process_group()
    if rank == 0:
        write_json(output, found)


def _costs(pairs: int, width: int, steps: int) -> dict[str, dict[str, float]]:
    """Of ours and the limits, by name. Collective."""
    generator = torch.Generator().manual_seed(distributed.rank())
    text, video = (torch.randn(pairs, width, generator=generator) for _ in range(2))
    both = torch.cat([text, video])
    parts = [torch.empty_like(both) for _ in range(distributed.world_size())]
    target = torch.empty(len(parts) * len(both), width)
    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: gather_features(text, video),
        _ALL_GATHER: lambda: dist.all_gather(parts, both),
        _COPY: lambda: torch.cat(parts, out=target),
    }
    return {name: _cost(contender, steps) for name, contender in contenders.items()}


def _cost(contender: Callable[[], object], steps: int) -> dict[str, float]:
    for _ in range(_WARM_UP):
        contender()
    distributed.barrier()
    before, begin, begin_cpu = sent_bytes(), time.perf_counter(), time.process_time()
    for _ in range(steps):
        contender()
    taken = {"sent_bytes": sent_bytes() - before, "seconds": time.perf_counter() - begin, "cpu_s": time.process_time() - begin_cpu}
    return distributed.reduce_numbers({name: (value / steps, "mean") for name, value in taken.items()})


def _print(found: Sequence[Gathering]) -> None:
    first = found[0]
    titles = ("ranks", "bytes sent", "x formula", "ms", "x predicted", "CPU ms", "x predicted", "x all-gather", "x copy")
    sys.stdout.write("".join(f"{title:>13}" for title in titles) + "\n")
    for one in found:
        # A rank sends to W - 1 others; on one machine the same cores send for all W.
        sends = (one.world_size - 1) / (first.world_size - 1)
        share = sends * one.world_size / first.world_size
        cells = (
            f"{one.world_size}",
            f"{one.ours.sent_bytes:,.0f}",
            f"{one.ours.sent_bytes / one.formula_bytes:.3f}",
            f"{1e3 * one.ours.seconds:.2f}",
            f"{one.ours.seconds / (share * first.ours.seconds):.2f}",
            f"{1e3 * one.ours.cpu_s:.2f}",
            f"{one.ours.cpu_s / (sends * first.ours.cpu_s):.2f}",
            f"{one.ours.cpu_s / one.limits[_ALL_GATHER].cpu_s:.2f}",
            f"{one.ours.cpu_s / one.limits[_COPY].cpu_s:.1f}",
        )
        sys.stdout.write("".join(f"{cell:>13}" for cell in cells) + "\n")
    sys.stdout.write("\npredicted from the first line: time as ranks x (ranks - 1), CPU of a rank as ranks - 1; the last two compare CPU\n")


if __name__ == "__main__":
    sys.exit(main())
