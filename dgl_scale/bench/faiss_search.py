"""Approximate search by FAISS beside exact search, in one run; the door of FAISS.

Clustered unit vectors, as of captions that speak of the same things; queries are some of them, moved a little. Exact
search is FAISS's own (inner products with all vectors, float32); approximate search an inverted file that compares
a query with the vectors of its nearest `probes` cells only, whole or as codes of a few bytes (product quantisation).
Vectors are made block by block, as often as they are needed; those that the inverted file keeps whole are all that is
held. Evaluation uses neither: its ranks are exact.
"""

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dgl_scale.errors import ConfigError

TOP_K = 10
_RESCORED = 100
_PROBES = (1, 4, 16, 64)
_VECTORS_AT_ONCE = 50_000
_VECTORS_A_CLUSTER = 200
_NOISE = 1.2
"""Length of what is added to a centre of length 1."""
_QUERY_NOISE = 0.3
_TRAINING_VECTORS_A_CELL = 40
_BITS = 8

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Approximation:
    """An inverted file with so many cells looked at.

    Attributes:
        recall: share of the exactly best `TOP_K` that are among its best `TOP_K`.
        recall_rescored: share of them that are among its best 100, and so what computing those exactly would find.
        seconds: of all queries, for the best `TOP_K`.
        cpu_seconds: of all threads; steadier where others use the machine.
    """

    probes: int
    recall: float
    recall_rescored: float
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Search:
    """What was measured.

    Attributes:
        code_bytes: of a vector in the inverted file; None: it is kept whole.
        cells: of the inverted file.
        exact_seconds: of all queries; the making of the vectors is not counted.
        build_seconds: training the cells and adding the vectors, not making them.
        peak_bytes: the most memory that the process ever held.
    """

    vectors: int
    width: int
    queries: int
    code_bytes: int | None
    cells: int
    exact_seconds: float
    exact_cpu_seconds: float
    build_seconds: float
    build_cpu_seconds: float
    peak_bytes: int
    approximations: tuple[Approximation, ...]


def measure_search(vectors: int, width: int, queries: int, code_bytes: int | None = None) -> Search:
    """Build the inverted file, search in it and exactly.

    Args:
        code_bytes: of a vector in the inverted file; divides `width`. None: vectors are kept whole.

    Raises:
        ConfigError: FAISS is not installed, `code_bytes` does not divide `width`, or there are too few vectors for codes.
    """
    faiss = _load_faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    cells = max(1, int(2 * vectors**0.5))
    inverted = _inverted_file(faiss, vectors, width, cells, code_bytes)
    generator = np.random.default_rng(1)
    sample = generator.choice(vectors, min(vectors, _TRAINING_VECTORS_A_CELL * cells), replace=False)
    near = generator.choice(vectors, queries, replace=queries > vectors)
    picked = _pick(vectors, width, np.concatenate([sample, near]))
    asked = _units(picked[len(sample) :] + _QUERY_NOISE * _directions(generator, queries, width))
    build, search = _Clock(), _Clock()
    with build:
        inverted.train(picked[: len(sample)])
    del picked
    best = _Best(queries)
    for start, block in _blocks(vectors, width):
        with build:
            inverted.add(block)
        with search:
            scores, rows = faiss.knn(asked, block, min(TOP_K, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
            best.add(scores, rows, start)
    approximations = []
    for probes in (p for p in _PROBES if p <= cells):
        inverted.nprobe = probes
        clock = _Clock()
        with clock:
            _, found = inverted.search(asked, TOP_K)
        _, many = inverted.search(asked, _RESCORED)
        approximations.append(
            Approximation(probes, recall(found, best.indices), recall(many, best.indices), clock.seconds, clock.cpu_seconds)
        )
    return Search(
        vectors,
        width,
        queries,
        code_bytes,
        cells,
        search.seconds,
        search.cpu_seconds,
        build.seconds,
        build.cpu_seconds,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        tuple(approximations),
    )


def clustered_vectors(size: int, width: int) -> Iterator[Vectors]:
    """Float32 unit vectors `[n, width]`, `size` in all; the same at every call."""
    centres = _directions(np.random.default_rng(0), max(1, size // _VECTORS_A_CLUSTER), width)
    for start in range(0, size, _VECTORS_AT_ONCE):
        generator = np.random.default_rng((0, start))
        count = min(_VECTORS_AT_ONCE, size - start)
        vectors = _directions(generator, count, width)
        vectors *= _NOISE
        vectors += centres[generator.integers(len(centres), size=count)]
        yield _units(vectors)


def recall(found: NDArray[np.int64], best: NDArray[np.int64]) -> float:
    """Share of `best` `[Q, k]` that is in the same row of `found` `[Q, k]`."""
    return float((found[:, :, None] == best[:, None, :]).any(axis=1).mean())


def table(search: Search) -> str:
    """Lines to print."""
    kept = "kept whole" if search.code_bytes is None else f"codes of {search.code_bytes} bytes"
    exact = f"{search.exact_seconds:>9.3f}{search.exact_cpu_seconds:>9.3f}{1:>9.1f}x{1:>12.1f}x{100:>10.1f}%{100:>12.1f}%"
    built = f"{search.build_seconds:.1f} s ({search.build_cpu_seconds:.1f} CPU s)"
    rows = [
        f"FAISS: {search.vectors:,} clustered vectors x {search.width}, {kept}, best {TOP_K} of {search.queries:,} queries, "
        f"{torch.get_num_threads()} threads",
        f"  {'':<30}{'seconds':>9}{'CPU s':>9}{'of exact':>10}{'in CPU time':>13}{f'recall@{TOP_K}':>11}{f'in best {_RESCORED}':>13}",
        f"  {'exact (all vectors)':<30}{exact}",
    ]
    for one in search.approximations:
        times = f"{f'{one.probes} of {search.cells:,} cells':<30}{one.seconds:>9.3f}{one.cpu_seconds:>9.3f}"
        ratios = f"{search.exact_seconds / one.seconds:>9.1f}x{search.exact_cpu_seconds / one.cpu_seconds:>12.1f}x"
        rows.append(f"  {times}{ratios}{100 * one.recall:>10.1f}%{100 * one.recall_rescored:>12.1f}%")
    rows += [
        f"  the cells took {built} to build, the process {search.peak_bytes / 1e9:.2f} GB; x: how many times as fast.",
        f"  in best {_RESCORED}: what recall@{TOP_K} would be if its best {_RESCORED} were scored exactly. Evaluation ranks exactly.",
    ]
    return "\n".join(rows) + "\n"


class _Clock:
    """Sums what the blocks under it take."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began[0]
        self.cpu_seconds += time.process_time() - self._began[1]


class _Best:
    """The best `TOP_K` of each query among the vectors so far, best first."""

    def __init__(self, queries: int) -> None:
        self._scores = np.empty((queries, 0), np.float32)
        self.indices = np.empty((queries, 0), np.int64)

    def add(self, scores: Vectors, rows: NDArray[np.int64], start: int) -> None:
        """Take in the best `[Q, k]` of the block whose first vector is `start`."""
        scores, indices = np.hstack([self._scores, scores]), np.hstack([self.indices, rows + start])
        order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP_K]
        self._scores, self.indices = np.take_along_axis(scores, order, 1), np.take_along_axis(indices, order, 1)


def _inverted_file(faiss: Any, vectors: int, width: int, cells: int, code_bytes: int | None) -> Any:
    quantizer = faiss.IndexFlatIP(width)
    if code_bytes is None:
        return faiss.IndexIVFFlat(quantizer, width, cells, faiss.METRIC_INNER_PRODUCT)
    if width % code_bytes:
        raise ConfigError(f"--faiss-code-bytes {code_bytes} does not divide --faiss-dim {width}")
    if vectors < 2**_BITS:
        raise ConfigError(f"--faiss-code-bytes needs at least {2**_BITS} vectors, got {vectors}")
    return faiss.IndexIVFPQ(quantizer, width, cells, code_bytes, _BITS, faiss.METRIC_INNER_PRODUCT)


def _blocks(vectors: int, width: int) -> Iterator[tuple[int, Vectors]]:
    start = 0
    for block in clustered_vectors(vectors, width):
        yield start, block
        start += len(block)


def _pick(vectors: int, width: int, rows: NDArray[np.int64]) -> Vectors:
    """The vectors `rows`, in this order."""
    picked = np.empty((len(rows), width), np.float32)
    for start, block in _blocks(vectors, width):
        here = (rows >= start) & (rows < start + len(block))
        picked[here] = block[rows[here] - start]
    return picked


def _directions(generator: np.random.Generator, size: int, width: int) -> Vectors:
    return _units(generator.standard_normal((size, width), dtype=np.float32))


def _units(vectors: Vectors) -> Vectors:
    """The same array, each vector with length 1."""
    vectors /= np.sqrt(np.einsum("ne,ne->n", vectors, vectors))[:, None]
    return vectors


def _load_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("--faiss needs FAISS; install it: pip install 'dgl-scale[faiss]'") from error
    return faiss
