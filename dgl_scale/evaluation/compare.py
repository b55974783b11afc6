"""Two evaluations of the same queries, pair by pair: how sure is it that one is better, and at what.

Everything is paired: of each query the rank by A and the rank by B. Whole videos are resampled, and have their ranks
exchanged, since the captions of one video are not independent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from dgl_scale.errors import DataError
from dgl_scale.evaluation.caption_categories import CATEGORIES, caption_categories
from dgl_scale.evaluation.metrics import Bools, Floats, Ints, paired_bootstrap, permutation_test
from dgl_scale.evaluation.results import RANKS, RESULTS, read_ranks
from dgl_scale.evaluation.retrieval import DIRECTIONS
from dgl_scale.files import read_json

RECALLS = (1, 5, 10)
_DURATIONS = ((10.0, "up to 10 s"), (30.0, "10 to 30 s"), (math.inf, "over 30 s"))


@dataclass(frozen=True)
class Queries:
    """What two evaluations answered in one direction; row i is of the same query in both.

    Attributes:
        a: `[N]` ranks.
        b: `[N]` ranks.
        videos: `[N]`, a number for the video of each query.
        categories: name to bool `[N]`.
    """

    a: Floats
    b: Floats
    videos: Ints
    categories: Mapping[str, Bools]


def compare_evaluations(a: Path, b: Path, *, samples: int, seed: int) -> dict[str, Any]:
    """All figures of a comparison.

    Args:
        a: an evaluation folder, or the ranks.parquet in it.
        b: another one, of the same queries.
        samples: resamples, and permutations.
        seed: same seed, same figures.

    Returns:
        For each direction: `queries`, `R@1`, `R@5`, `R@10` (each with `a`, `b`, `difference`, `interval`, `p_bootstrap`,
        `p_permutation`), `won`, `lost`, `tied` (queries that A ranks better, worse, equally) and `categories`, by name
        the same with R@1 only.

    Raises:
        DataError: a file is missing or damaged, or the two did not answer the same queries.
    """
    folders = _folder(a), _folder(b)
    durations = _durations(folders[0])
    result = {}
    for direction in DIRECTIONS:
        rows = [sorted(read_ranks(folder, direction), key=_query) for folder in folders]
        queries = pair_queries(rows[0], rows[1], direction, durations)
        result[direction] = _figures(queries.a, queries.b, queries.videos, RECALLS, samples, seed)
        result[direction]["categories"] = {
            name: _figures(queries.a[chosen], queries.b[chosen], queries.videos[chosen], RECALLS[:1], samples, seed)
            for name, chosen in queries.categories.items()
            if chosen.any()
        }
    return result


def pair_queries(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], direction: str, durations: Mapping[str, float]) -> Queries:
    """Rows of two ranks.parquet, sorted by query, as one set of paired ranks.

    Raises:
        DataError: they are of other queries; names the first.
    """
    names = [_query(row) for row in a], [_query(row) for row in b]
    what = direction.replace("_", "-")
    if names[0] != names[1]:
        only = sorted(set(names[0]) ^ set(names[1]))
        first = f"; only {'A' if only[0] in names[0] else 'B'} has {' '.join(part for part in only[0] if part)!r}" if only else ""
        raise DataError(f"A and B answered other {what} queries ({len(a)} and {len(b)}{first}); compare evaluations of one split")
    if not a:
        raise DataError(f"there are no {what} queries to compare")
    labels = [_categories(row, durations) for row in a]
    order = [*CATEGORIES, *(name for _, name in _DURATIONS)]
    return Queries(
        np.array([row["rank"] for row in a]),
        np.array([row["rank"] for row in b]),
        np.unique([row["key"] for row in a], return_inverse=True)[1],
        {name: np.array([name in own for own in labels]) for name in order},
    )


def _figures(a: Floats, b: Floats, videos: Ints, recalls: Sequence[int], samples: int, seed: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"queries": len(a)}
    for k in recalls:
        found = paired_bootstrap(a, b, videos, samples=samples, seed=seed, recall_at=k)
        figures[f"R@{k}"] = {
            "a": float(100 * (a <= k).mean()),
            "b": float(100 * (b <= k).mean()),
            "difference": found.difference,
            "interval": [found.low, found.high],
            "p_bootstrap": found.p_value,
            "p_permutation": permutation_test(a, b, videos, samples=samples, seed=seed, recall_at=k),
        }
    return {**figures, "won": int((a < b).sum()), "lost": int((a > b).sum()), "tied": int((a == b).sum())}


def _folder(path: Path) -> Path:
    if path.is_dir() and (path / RANKS).is_file():
        return path
    if path.is_file() and path.name == RANKS:
        return path.parent
    raise DataError(f"{path} is no evaluation: give a folder that holds {RANKS}, such as RUN/evaluation/step-00001000-test")


def _query(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["key"], row["caption"] or ""


def _categories(row: Mapping[str, Any], durations: Mapping[str, float]) -> tuple[str, ...]:
    by_words = caption_categories(row["caption"]) if row["caption"] else ()
    if (seconds := durations.get(row["key"])) is None:
        return by_words
    return *by_words, next(name for most, name in _DURATIONS if seconds <= most)


def _durations(folder: Path) -> dict[str, float]:
    """Seconds of each video, where the shards of the evaluation are at hand."""
    try:
        split = Path(read_json(folder / RESULTS)["split_folder"])
        tables = [pyarrow.parquet.read_table(path, columns=["key", "duration"]) for path in sorted(split.glob("*.parquet"))]
    except (DataError, OSError, KeyError, TypeError, pyarrow.ArrowException):
        return {}
    return {row["key"]: row["duration"] for table in tables for row in table.to_pylist() if row["duration"] is not None}
