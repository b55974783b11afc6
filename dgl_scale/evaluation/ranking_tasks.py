"""What is computed over all pairs by Ray tasks: each holds one part of the rows, and one part of the columns at a time."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgl_scale.config import EvaluationConfig
from dgl_scale.errors import DglError
from dgl_scale.evaluation.adjust import Adjust
from dgl_scale.evaluation.own_captions import own_caption_standing
from dgl_scale.evaluation.pair_sums import BLOCK, count_best, log_of_sums, log_sums, partial_sums
from dgl_scale.evaluation.pairwise import LabelledFeatures, in_order
from dgl_scale.evaluation.ranking_input import Parts, check_ranking_input
from dgl_scale.evaluation.ranks import (
    UNITS_AT_ONCE,
    PartialRanking,
    Ranking,
    RightScores,
    merge_parts,
    own_scores,
    rank_text_part,
    right_scores,
)

_LEAST_ROWS = 2_048
"""Below, a task would spend its time on fetching columns."""
_TASKS_PER_WORKER = 2
_MIN_ENTRIES = 400_000_000
"""Of the similarity matrix: what one core ranks in about six seconds, the time in which a worker starts."""

Work = Callable[..., Any]
"""`(rows, index of the first, all columns in parts, *shared) -> result`; a function of a module, since it is pickled by name."""


def is_worth_tasks(num_texts: int, num_videos: int, evaluation: EvaluationConfig) -> bool:
    """Whether several workers rank so many captions and videos sooner than this process alone."""
    return evaluation.num_workers > 1 and num_texts * num_videos >= _MIN_ENTRIES


@dataclass(frozen=True)
class ByTasks:
    """A `pairwise.Pairwise`: bitwise what `InProcess` finds, by up to `evaluation.num_workers` tasks of a connected Ray at a time.

    A task whose worker dies is repeated by Ray. All raise `DglError` where a task failed, or was repeated in vain.

    Attributes:
        most_rows: rows of a task, and columns that it holds at once.
    """

    evaluation: EvaluationConfig
    most_rows: int = UNITS_AT_ONCE

    def rank(self, features: LabelledFeatures, *, scale: float, top_k: int, adjust: tuple[Adjust, Adjust] | None = None) -> Ranking:
        """As of `Pairwise`, like all that follow; a task has a part of the captions. `adjust` must be such that it can be pickled.

        Raises:
            DataError: as `rank_both_directions`.
        """
        text, video, target = features.text, features.video, features.target
        check_ranking_input((text,), (video,), target)
        right = right_scores(own_scores(text, video, target, scale=scale), target, len(video), adjust=adjust)
        options = {"scale": scale, "block_size": self.evaluation.block_size, "top_k": top_k, "adjust": adjust}
        return merge_parts(self._run("rank captions", _rank_part, text, video, right, options), right)

    def log_sums(self, rows: Tensor, columns: Tensor, *, scale: float) -> Tensor:
        """A task has a part of the rows."""
        return torch.cat(list(self._run("sum over pairs", _log_sums_of_part, rows, columns, scale)))

    def log_sums_of_both(self, rows: Tensor, columns: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
        """A task has whole blocks of the rows."""
        return log_of_sums(self._run("sum over pairs", _partial_sums, rows, columns, scale, multiple_of=BLOCK), scale=scale)

    def count_best(self, queries: Tensor, candidates: Tensor, *, top_k: int) -> Tensor:
        """A task has a part of the queries."""
        counts = self._run("count best", _count_best_of_part, queries, candidates, top_k)
        return sum(counts, start=torch.zeros(len(candidates), dtype=torch.int64))

    def own_caption_standing(self, features: LabelledFeatures) -> tuple[Tensor, Tensor]:
        """A task has a part of the videos."""
        own = own_scores(features.text, features.video, features.target, scale=1.0)
        found = self._run("place captions", own_caption_standing, features.video, features.text, own, features.target)
        return in_order(list(found), len(own))

    def _run(self, name: str, work: Work, rows: Tensor, columns: Tensor, *shared: Any, multiple_of: int = 1) -> Iterator[Any]:
        """What `work` gives for all parts of the rows, in order; `shared` is put into the object store once.

        Args:
            multiple_of: rows that stay together.
        """
        import ray

        evaluation = self.evaluation
        at_once = _TASKS_PER_WORKER * evaluation.num_workers
        size = min(self.most_rows, max(_LEAST_ROWS, math.ceil(len(rows) / at_once)))
        size = math.ceil(size / multiple_of) * multiple_of
        # In a list, a reference is handed on as it is: a task fetches one part after the other.
        parts = [ray.put(part.clone()) for part in torch.split(columns, self.most_rows)]
        task = ray.remote(_do).options(num_cpus=evaluation.cpus_per_worker, name=name)
        common = ray.put((work, max(1, int(evaluation.cpus_per_worker)), shared))
        waiting = deque(range(0, len(rows), size))
        running: deque[Any] = deque()
        while waiting or running:
            while waiting and len(running) < at_once:
                start = waiting.popleft()
                running.append(task.remote(rows[start : start + size].clone(), start, parts, common))
            yield _result(ray, running.popleft())


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, DglError):
            raise cause from error
        raise DglError(f"ranking on the workers failed; is there enough memory? ({str(error).strip().splitlines()[0]})") from error


def _do(rows: Tensor, start: int, parts: Sequence[Any], common: tuple[Work, int, tuple[Any, ...]]) -> Any:
    work, num_threads, shared = common
    torch.set_num_threads(num_threads)
    return work(rows, start, _Fetched(parts), *shared)


def _rank_part(text: Tensor, start: int, videos: Parts, right: RightScores, options: dict[str, Any]) -> PartialRanking:
    return rank_text_part(text, start, videos, right, **options)


def _log_sums_of_part(rows: Tensor, start: int, columns: Parts, scale: float) -> Tensor:
    return log_sums(rows, columns, scale=scale)


def _partial_sums(rows: Tensor, start: int, columns: Parts, scale: float) -> tuple[Tensor, Tensor]:
    return partial_sums(rows, columns, scale=scale)


def _count_best_of_part(queries: Tensor, start: int, candidates: Parts, top_k: int) -> Tensor:
    return count_best(queries, candidates, top_k=top_k)


class _Fetched(Sequence[Tensor]):
    """Parts in Ray's object store, fetched when asked for."""

    def __init__(self, references: Sequence[Any]) -> None:
        self._references = references

    def __len__(self) -> int:
        return len(self._references)

    def __getitem__(self, i: Any) -> Any:
        import ray

        return ray.get(self._references[i])
