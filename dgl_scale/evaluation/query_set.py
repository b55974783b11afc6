"""Evaluations that answer the same queries: only their figures can be compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dgl_scale.evaluation.metrics import Difference, paired_bootstrap
from dgl_scale.evaluation.results import RESULTS, read_ranks
from dgl_scale.evaluation.retrieval import DIRECTIONS
from dgl_scale.files import json_sha256

_BOOTSTRAP_SAMPLES = 2000


@dataclass(frozen=True)
class Evaluated:
    """An evaluation and the name that readers know it by.

    Attributes:
        folder: that holds its results.json and ranks.parquet.
        run_folder: of the training run that it belongs to.
    """

    name: str
    folder: Path
    run_folder: Path
    results: dict[str, Any]

    @property
    def trains_nothing(self) -> bool:
        """Whether it is of a frozen CLIP."""
        return bool(self.results["trained_parameters"] == 0)


@dataclass(frozen=True)
class QuerySet:
    """Evaluations of the same captions among the same videos.

    Attributes:
        evaluations: in the order in which they are shown.
        baseline: which of them the others are compared with; None where there is one alone.
    """

    evaluations: tuple[Evaluated, ...]
    baseline: int | None

    @property
    def shown(self) -> int:
        """The evaluation whose queries are shown first: the newest of DGL prompts, else the newest."""

        def preference(i: int) -> tuple[bool, float]:
            one = self.evaluations[i]
            return one.results["model"]["latent_space"] is not None, (one.folder / RESULTS).stat().st_mtime

        return max(range(len(self.evaluations)), key=preference)

    @property
    def label(self) -> str:
        """Such as `298 captions of 200 videos, quickstart, split test`; without the dataset where it is not recorded."""
        results = self.evaluations[0].results
        splits = dict.fromkeys(str(one.results["split"]) for one in self.evaluations)
        dataset = f", {results['dataset']}" if results.get("dataset") else ""
        return f"{results['queries']:,} captions of {results['videos']:,} videos{dataset}, split {' and '.join(splits)}"

    @cached_property
    def answers(self) -> dict[str, list[list[dict[str, Any]]]]:
        """Of each direction and evaluation, the rows of its ranks.parquet; row i is of the same query in all of them.

        Raises:
            DataError: ranks.parquet is missing or damaged.
        """
        return {direction: [_sorted_rows(one.folder, direction) for one in self.evaluations] for direction in DIRECTIONS}

    def against_baseline(self, number: int) -> dict[str, Difference] | None:
        """By how much R@1 of an evaluation differs from the baseline's, paired over queries; None for the baseline itself."""
        if self.baseline is None or number == self.baseline:
            return None
        differences = {}
        for direction, rows in self.answers.items():
            videos = np.unique([row["key"] for row in rows[number]], return_inverse=True)[1]
            ours, theirs = (np.array([row["rank"] for row in rows[i]]) for i in (number, self.baseline))
            differences[direction] = paired_bootstrap(ours, theirs, videos, samples=_BOOTSTRAP_SAMPLES, seed=0)
        return differences


def group_by_queries(evaluations: Sequence[Evaluated], baseline: Path | None = None) -> list[QuerySet]:
    """The evaluations by what they were asked, in the order of each set's first.

    Args:
        baseline: run or evaluation folder to compare with; None: a frozen CLIP where one was evaluated, else the first.

    Raises:
        DataError: a ranks.parquet is missing or damaged.
    """
    sets: dict[str, list[Evaluated]] = {}
    for one in evaluations:
        queries = [[row["key"], row["caption"]] for row in _sorted_rows(one.folder, DIRECTIONS[0])]
        sets.setdefault(json_sha256([queries, one.results["videos"]]), []).append(one)
    return [QuerySet(tuple(members), _choose_baseline(members, baseline)) for members in sets.values()]


def _choose_baseline(members: Sequence[Evaluated], wanted: Path | None) -> int | None:
    if len(members) == 1:
        return None
    chosen = [i for i, one in enumerate(members) if wanted is not None and wanted.resolve() in _places(one)]
    frozen = [i for i, one in enumerate(members) if one.trains_nothing]
    return (chosen or frozen or [0])[0]


def _places(one: Evaluated) -> tuple[Path, Path]:
    return one.folder.resolve(), one.run_folder.resolve()


def _sorted_rows(folder: Path, direction: str) -> list[dict[str, Any]]:
    # Shards that were built in another order hold the same queries elsewhere.
    return sorted(read_ranks(folder, direction), key=lambda row: (row["key"], row["caption"] or ""))
