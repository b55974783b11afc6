"""Exact ranks of both directions by Ray tasks: each holds one part of the captions, and one part of the videos at a time."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dgl_scale.config import EvaluationConfig
from dgl_scale.errors import DglError
from dgl_scale.evaluation.features import Features
from dgl_scale.evaluation.ranking_input import check_ranking_input
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
"""Below, a task would spend its time on fetching videos."""
_TASKS_PER_WORKER = 2
_MIN_ENTRIES = 400_000_000
"""Of the similarity matrix: what one core ranks in about six seconds, the time in which a worker starts."""


def is_worth_tasks(features: Features, evaluation: EvaluationConfig) -> bool:
    """Whether several workers rank these features sooner than this process alone."""
    return evaluation.num_workers > 1 and len(features.text) * len(features.keys) >= _MIN_ENTRIES


def rank_by_tasks(features: Features, evaluation: EvaluationConfig, *, most_rows: int = UNITS_AT_ONCE) -> Ranking:
    """Bitwise what `rank_both_directions` finds, by up to `evaluation.num_workers` tasks of a connected Ray at a time.

    A task whose worker dies is repeated by Ray.

    Args:
        most_rows: captions of a task, and videos that it holds at once.

    Raises:
        DataError: as `rank_both_directions`.
        DglError: a task failed, or was repeated in vain.
    """
    import ray

    text, video, target = features.text, features.video, features.video_index
    check_ranking_input((text,), (video,), target)
    right = right_scores(own_scores(text, video, target, scale=features.scale), target, len(video))
    wanted = math.ceil(len(text) / (_TASKS_PER_WORKER * evaluation.num_workers))
    rows = min(most_rows, max(_LEAST_ROWS, wanted))
    # In a list, a reference is handed on as it is: a task fetches one part after the other.
    videos = [ray.put(part.clone()) for part in torch.split(video, most_rows)]
    task = ray.remote(_rank_part).options(num_cpus=evaluation.cpus_per_worker, name="rank captions")
    options = {"scale": features.scale, "block_size": evaluation.block_size, "top_k": evaluation.top_k}
    shared = ray.put((right, max(1, int(evaluation.cpus_per_worker)), options))
    starts = range(0, len(text), rows)

    def results() -> Iterator[PartialRanking]:
        waiting = deque(starts)
        running: deque[Any] = deque()
        while waiting or running:
            while waiting and len(running) < _TASKS_PER_WORKER * evaluation.num_workers:
                start = waiting.popleft()
                running.append(task.remote(text[start : start + rows].clone(), start, videos, shared))
            yield _result(ray, running.popleft())

    return merge_parts(results(), right)


def _result(ray: Any, reference: Any) -> PartialRanking:
    try:
        found: PartialRanking = ray.get(reference)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, DglError):
            raise cause from error
        raise DglError(f"ranking on the workers failed; is there enough memory? ({str(error).strip().splitlines()[0]})") from error
    return found


def _rank_part(text: Tensor, start: int, videos: Sequence[Any], shared: tuple[RightScores, int, dict[str, Any]]) -> PartialRanking:
    right, num_threads, options = shared
    torch.set_num_threads(num_threads)
    return rank_text_part(text, start, _Fetched(videos), right, **options)


class _Fetched(Sequence[Tensor]):
    """Parts in Ray's object store, fetched when asked for."""

    def __init__(self, references: Sequence[Any]) -> None:
        self._references = references

    def __len__(self) -> int:
        return len(self._references)

    def __getitem__(self, i: Any) -> Any:
        import ray

        return ray.get(self._references[i])
