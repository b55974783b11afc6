"""Approximate search by FAISS beside exact search, in one run; the door of FAISS.

Clustered unit vectors, as of captions that speak of the same things; queries are some of them, moved a little. Exact
search is FAISS's own (inner products with all vectors, float32); approximate search an inverted file that compares
a query with the vectors of its nearest `probes` cells only. Evaluation uses neither: its ranks are exact.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dgl_scale.errors import ConfigError

TOP_K = 10
_PROBES = (1, 4, 16, 64)
_VECTORS_AT_ONCE = 100_000
_VECTORS_A_CLUSTER = 200
_NOISE = 1.2
"""Length of what is added to a centre of length 1."""
_QUERY_NOISE = 0.3
_TRAINING_VECTORS_A_CELL = 40

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Approximation:
    """An inverted file with so many cells looked at.

    Attributes:
        recall: share of the exactly best `TOP_K` that it finds.
        seconds: of all queries.
        cpu_seconds: of all threads; steadier where others use the machine.
    """

    probes: int
    recall: float
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Search:
    """What was measured.

    Attributes:
        cells: of the inverted file.
        exact_seconds: of all queries.
        build_seconds: training the cells and adding the vectors.
    """

    vectors: int
    width: int
    queries: int
    cells: int
    exact_seconds: float
    exact_cpu_seconds: float
    build_seconds: float
    approximations: tuple[Approximation, ...]


def measure_search(vectors: int, width: int, queries: int) -> Search:
    """Build both indexes and search them.

    Raises:
        ConfigError: FAISS is not installed.
    """
    faiss = _load_faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    cells = max(1, int(2 * vectors**0.5))
    exact = faiss.IndexFlatIP(width)
    quantizer = faiss.IndexFlatIP(width)
    inverted = faiss.IndexIVFFlat(quantizer, width, cells, faiss.METRIC_INNER_PRODUCT)
    for block in clustered_vectors(vectors, width):
        exact.add(block)
    started = time.perf_counter()
    generator = np.random.default_rng(1)
    sample = np.sort(generator.choice(vectors, min(vectors, _TRAINING_VECTORS_A_CELL * cells), replace=False))
    inverted.train(exact.reconstruct_batch(sample))
    for block in clustered_vectors(vectors, width):
        inverted.add(block)
    build_seconds = time.perf_counter() - started
    near = exact.reconstruct_batch(generator.choice(vectors, queries, replace=queries > vectors))
    asked = _units(near + _QUERY_NOISE * _directions(generator, queries, width))
    best, exact_seconds, exact_cpu_seconds = _search(exact, asked)
    approximations = []
    for probes in (p for p in _PROBES if p <= cells):
        inverted.nprobe = probes
        found, seconds, cpu_seconds = _search(inverted, asked)
        approximations.append(Approximation(probes, recall(found, best), seconds, cpu_seconds))
    return Search(vectors, width, queries, cells, exact_seconds, exact_cpu_seconds, build_seconds, tuple(approximations))


def clustered_vectors(size: int, width: int) -> Iterator[Vectors]:
    """Float32 unit vectors `[n, width]`, `size` in all; the same at every call."""
    generator = np.random.default_rng(0)
    centres = _directions(generator, max(1, size // _VECTORS_A_CLUSTER), width)
    for start in range(0, size, _VECTORS_AT_ONCE):
        count = min(_VECTORS_AT_ONCE, size - start)
        yield _units(centres[generator.integers(len(centres), size=count)] + _NOISE * _directions(generator, count, width))


def recall(found: NDArray[np.int64], best: NDArray[np.int64]) -> float:
    """Share of `best` `[Q, k]` that is in the same row of `found` `[Q, k]`."""
    return float((found[:, :, None] == best[:, None, :]).any(axis=1).mean())


def table(search: Search) -> str:
    """Lines to print."""
    rows = [
        f"FAISS: {search.vectors:,} clustered vectors x {search.width}, best {TOP_K} of {search.queries:,} queries, "
        f"{torch.get_num_threads()} threads",
        f"  {'':<30}{'seconds':>9}{'CPU s':>9}{'of exact':>10}{'in CPU time':>13}{f'recall@{TOP_K}':>11}",
        f"  {'exact (all vectors)':<30}{search.exact_seconds:>9.3f}{search.exact_cpu_seconds:>9.3f}{1:>9.1f}x{1:>12.1f}x{100:>10.1f}%",
    ]
    for one in search.approximations:
        times = f"{f'{one.probes} of {search.cells:,} cells':<30}{one.seconds:>9.3f}{one.cpu_seconds:>9.3f}"
        ratios = f"{search.exact_seconds / one.seconds:>9.1f}x{search.exact_cpu_seconds / one.cpu_seconds:>12.1f}x"
        rows.append(f"  {times}{ratios}{100 * one.recall:>10.1f}%")
    rows.append(f"  the cells took {search.build_seconds:.1f} s to build; x: how many times as fast. Evaluation ranks exactly.")
    return "\n".join(rows) + "\n"


def _search(index: Any, queries: Vectors) -> tuple[NDArray[np.int64], float, float]:
    started, cpu_started = time.perf_counter(), time.process_time()
    _, indices = index.search(queries, TOP_K)
    return indices, time.perf_counter() - started, time.process_time() - cpu_started


def _directions(generator: np.random.Generator, size: int, width: int) -> Vectors:
    return _units(generator.standard_normal((size, width), dtype=np.float32))


def _units(vectors: Vectors) -> Vectors:
    units: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return units


def _load_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("--faiss needs FAISS; install it: pip install 'dgl-scale[faiss]'") from error
    return faiss
