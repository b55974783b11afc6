"""`dgl-scale bench ranking`: exact ranks of both directions beside the bare matrix product and beside other ways to rank.

Limits: the product of the features alone, in float32 and in float64, a block of rows at a time into one buffer. Rivals, at
`--rivals-size` since they hold whole matrices: the way of the published code (whole matrix, sort each row, find the
right score in it; both directions), and the chunked way of open_clip's newer releases, written anew from its description
(a chunk of scores, count those above the right one; both directions; ties are not counted), which open_clip 3 does not ship.
Dual softmax is measured beside its usual way, over the whole matrix in float32. `--workers N`: the ranking and dual softmax by Ray
tasks as well, each on a thread; what other processes take of CPU time and memory is not counted.
"""

import contextlib
import math
import os
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from dgl_scale.bench.faiss_search import measure_search, table
from dgl_scale.config import EvaluationConfig
from dgl_scale.entry import Parser, positive_int, run_command
from dgl_scale.errors import ExitCode
from dgl_scale.evaluation.pairwise import InProcess, LabelledFeatures, Pairwise
from dgl_scale.evaluation.ranking_tasks import ByTasks
from dgl_scale.evaluation.ranks import Ranking, rank_both_directions
from dgl_scale.evaluation.rescoring import dual_softmax
from dgl_scale.files import write_json
from dgl_scale.ray_cluster import ray_cluster

_ROWS = 1024
_SCALE = 100.0
"""Of the scores: what CLIP's logit scale is at the end of its training."""
_NOISE = 6.0
"""Of a caption against its video: R@1 is then near 50% among 20,000."""
_SAMPLE_S = 0.01


class Contender(NamedTuple):
    """What is measured; `size` are its captions, and its videos. `is_here`: all in this process, whose CPU time and memory are counted."""

    name: str
    size: int
    run: Callable[[], object]
    is_here: bool = True


@dataclass(frozen=True)
class Measurement:
    """One contender.

    Attributes:
        seconds: the fastest round.
        entries_per_second: of the similarity matrix.
        cpu_seconds: of the round that took least, all threads together; steadier than seconds where others use the machine. None
            where other processes took part, as of `peak_bytes`.
        peak_bytes: resident memory above that before it began, features not counted; the most of all rounds.
    """

    name: str
    size: int
    seconds: float
    all_seconds: list[float]
    cpu_seconds: float | None
    entries_per_second: float
    peak_bytes: int | None


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print; returns the exit code."""
    parser = Parser(prog="dgl-scale bench ranking", description="Exact ranking beside the bare matrix product and other ways to rank.")
    parser.add_argument(
        "--size",
        type=positive_int,
        default=20_000,
        help="captions and videos (100000 takes two minutes a round with --no-rivals on two cores)",
    )
    parser.add_argument("--width", type=positive_int, default=512, help="components of a feature")
    parser.add_argument("--top-k", type=positive_int, default=10)
    parser.add_argument(
        "--rivals-size", type=positive_int, default=5_000, help="captions and videos of the rivals, which hold whole matrices"
    )
    parser.add_argument("--no-rivals", action="store_true", help="only the ranking and the float32 product")
    parser.add_argument("--rounds", type=positive_int, default=3, help="each contender once a round, the fastest counts")
    parser.add_argument("--threads", type=positive_int, default=None, help="CPU threads (default: all)")
    parser.add_argument("--workers", type=positive_int, metavar="N", help="rank by N Ray workers of a thread each as well")
    parser.add_argument(
        "--faiss", action="store_true", help="instead: approximate search by FAISS beside exact search, its recall and speed"
    )
    parser.add_argument("--faiss-vectors", type=positive_int, default=200_000, help="10000000 take long")
    parser.add_argument("--faiss-dim", type=positive_int, default=64, help="components of each")
    parser.add_argument("--faiss-queries", type=positive_int, default=1_000)
    parser.add_argument(
        "--faiss-code-bytes", type=positive_int, metavar="N", help="keep a vector as N bytes (product quantisation); default: whole"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments), debug=arguments.debug)


def _run(arguments: Namespace) -> int:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    if arguments.faiss:
        search = measure_search(arguments.faiss_vectors, arguments.faiss_dim, arguments.faiss_queries, arguments.faiss_code_bytes)
        sys.stdout.write(table(search))
        if arguments.json:
            write_json(arguments.json, {"arguments": plain, "search": asdict(search)})
        return ExitCode.DONE
    rivals_size = None if arguments.no_rivals else min(arguments.rivals_size, arguments.size)
    with contextlib.ExitStack() as stack:
        if arguments.workers:
            stack.enter_context(ray_cluster(max(arguments.workers, os.cpu_count() or 1)))
        measurements = measure(arguments.size, arguments.width, arguments.top_k, rivals_size, arguments.rounds, arguments.workers)
    sys.stdout.write(f"{arguments.size:,} captions x {arguments.size:,} videos x {arguments.width}, {torch.get_num_threads()} threads\n")
    sys.stdout.write(_table(measurements))
    if arguments.json:
        write_json(arguments.json, {"arguments": plain, "measurements": [asdict(one) for one in measurements]})
    return ExitCode.DONE


def measure(size: int, width: int, top_k: int, rivals_size: int | None, rounds: int, num_workers: int | None = None) -> list[Measurement]:
    """All contenders, in turn within each round; the first is the ranking, the second its limit, and the only ones without rivals.

    Args:
        num_workers: of a connected Ray, that rank too; None: none do.
    """
    text, video = make_features(size, width, _NOISE)
    contenders = [
        Contender("exact ranking", size, lambda: _rank(text, video, top_k)),
        Contender("bare product, float32", size, lambda: _products(text, video)),
    ]
    if rivals_size is not None:
        contenders += _rivals(text, video, top_k, rivals_size)
    if num_workers is not None:
        contenders += _by_workers(text, video, top_k, num_workers)
    return _measure(contenders, rounds)


def _rivals(text: Tensor, video: Tensor, top_k: int, rivals_size: int) -> list[Contender]:
    size, width = text.shape
    far, _ = make_features(size, width, 1e4)
    few = text[:rivals_size], video[:rivals_size]
    return [
        Contender("exact ranking, untrained features", size, lambda: _rank(far, video, top_k)),
        Contender("bare product, float64", size, lambda: _products(text.double(), video.double())),
        Contender("whole matrix, sorted", rivals_size, lambda: ranks_by_sorting(*few)),
        Contender("chunks, counted", rivals_size, lambda: ranks_by_chunks(*few)),
        Contender("dual softmax in blocks", size, lambda: rank_by_dual_softmax(text, video, InProcess(_ROWS))),
        Contender("dual softmax, whole matrix", rivals_size, lambda: ranks_by_whole_dual_softmax(*few)),
    ]


def _by_workers(text: Tensor, video: Tensor, top_k: int, num_workers: int) -> list[Contender]:
    size = len(text)
    tasks = ByTasks(EvaluationConfig(num_workers=num_workers))
    features = LabelledFeatures(text, video, torch.arange(size))
    return [
        Contender(f"exact ranking, {num_workers} workers", size, lambda: tasks.rank(features, scale=_SCALE, top_k=top_k), is_here=False),
        Contender(f"dual softmax, {num_workers} workers", size, lambda: rank_by_dual_softmax(text, video, tasks), is_here=False),
    ]


def _measure(contenders: Sequence[Contender], rounds: int) -> list[Measurement]:
    seconds: dict[str, list[float]] = {one.name: [] for one in contenders}
    cpu: dict[str, float] = dict.fromkeys(seconds, math.inf)
    peaks: dict[str, int] = dict.fromkeys(seconds, 0)
    for _ in range(rounds):
        for name, _, run, _ in contenders:
            with _PeakMemory() as memory:
                start, cpu_start = time.perf_counter(), time.process_time()
                run()
                seconds[name].append(time.perf_counter() - start)
                cpu[name] = min(cpu[name], time.process_time() - cpu_start)
            peaks[name] = max(peaks[name], memory.bytes)
    found = []
    for name, n, _, is_here in contenders:
        fastest = min(seconds[name])
        of_process = (cpu[name], peaks[name]) if is_here else (None, None)
        found.append(Measurement(name, n, fastest, seconds[name], of_process[0], n * n / fastest, of_process[1]))
    return found


def make_features(size: int, width: int, noise: float) -> tuple[Tensor, Tensor]:
    """Random videos, and captions that are their video plus noise."""
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(size, width, generator=generator)
    return video + noise * torch.randn(size, width, generator=generator), video


def ranks_by_sorting(text: Tensor, video: Tensor) -> tuple[Any, Any]:
    """The published code's way, for caption i and video i: 0 is best; a tie is counted several times."""
    matrix = (torch.nn.functional.normalize(text) @ torch.nn.functional.normalize(video).T).numpy()

    def positions(scores: Any) -> Any:
        ordered = np.sort(-scores, axis=1)
        difference = ordered - np.diag(-scores)[:, None]
        return np.where(difference == 0)[1]

    return positions(matrix), positions(matrix.T)


def ranks_by_chunks(text: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
    """Chunks of scores of each direction, and how many are above the right one: 0 is best; float32 decides."""
    units = torch.nn.functional.normalize(text), torch.nn.functional.normalize(video)
    right = (units[0] * units[1]).sum(dim=1)

    def counts(queries: Tensor, candidates: Tensor) -> Tensor:
        chunks = zip(torch.split(queries, _ROWS), torch.split(right, _ROWS), strict=True)
        return torch.cat([(chunk @ candidates.T > score[:, None]).sum(dim=1) for chunk, score in chunks])

    return counts(*units), counts(*units[::-1])


def rank_by_dual_softmax(text: Tensor, video: Tensor, pairwise: Pairwise) -> Ranking:
    """As an evaluation ranks caption i and video i under `rerank`."""
    adjust = dual_softmax(text, video, scale=_SCALE, pairwise=pairwise)
    features = LabelledFeatures(text, video, torch.arange(len(text)))
    return pairwise.rank(features, scale=_SCALE, top_k=1, adjust=adjust)


def ranks_by_whole_dual_softmax(text: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
    """The usual way, for caption i and video i: 0 is best; float32 decides, and ties are not counted."""
    matrix = _SCALE * (torch.nn.functional.normalize(text) @ torch.nn.functional.normalize(video).T)

    def counts(scores: Tensor) -> Tensor:
        return (scores > scores.diag()[:, None]).sum(dim=1)

    return counts(matrix * matrix.softmax(dim=0)), counts((matrix * matrix.softmax(dim=1)).T)


def _rank(text: Tensor, video: Tensor, top_k: int) -> Ranking:
    return rank_both_directions(text, video, torch.arange(len(text)), scale=_SCALE, block_size=_ROWS, top_k=top_k)


def _products(text: Tensor, video: Tensor) -> None:
    buffer = torch.empty(_ROWS, len(video), dtype=text.dtype)
    for rows in torch.split(text, _ROWS):
        torch.mm(rows, video.T, out=buffer[: len(rows)])


class _PeakMemory:
    """The most resident memory of this process above that at the start, looked at a hundred times a second."""

    bytes = 0

    def __enter__(self) -> "_PeakMemory":
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._before)


def _table(measurements: Sequence[Measurement]) -> str:
    limit = next(one for one in measurements if one.name == "bare product, float32")
    titles = f"{'size':>9}{'seconds':>10}{'CPU s':>9}{'M entries/s':>13}{'of product':>12}{'in CPU time':>13}{'memory MB':>11}"
    lines = [f"  {'':<34}{titles}"]
    for one in measurements:
        rate, share = one.entries_per_second / 1e6, one.entries_per_second / limit.entries_per_second
        cpu, cpu_share, memory = "-", "-", "-"
        if one.cpu_seconds is not None and one.peak_bytes is not None and limit.cpu_seconds is not None:
            cpu, memory = f"{one.cpu_seconds:.2f}", f"{one.peak_bytes / 1e6:.0f}"
            cpu_share = f"{100 * one.size**2 / limit.size**2 * limit.cpu_seconds / one.cpu_seconds:.1f}%"
        times = f"{one.size:>9,}{one.seconds:>10.2f}{cpu:>9}"
        lines.append(f"  {one.name:<34}{times}{rate:>13.1f}{100 * share:>11.1f}%{cpu_share:>13}{memory:>11}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
