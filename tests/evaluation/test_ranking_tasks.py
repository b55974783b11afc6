"""Rankings, reranked ones too, by Ray tasks: the same bits as in one process for any number of workers and any cut, after kills too."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields
from typing import Any

import pytest
import torch

from dgl_scale.config import EvaluationConfig, QueryBankConfig, RunConfig
from dgl_scale.errors import DataError
from dgl_scale.evaluation import ranking_tasks
from dgl_scale.evaluation.features import Features
from dgl_scale.evaluation.pairwise import InProcess, LabelledFeatures, Pairwise, labelled
from dgl_scale.evaluation.ranking_tasks import ByTasks, is_worth_tasks
from dgl_scale.evaluation.ranks import DirectionRanks, Ranking
from dgl_scale.evaluation.rescoring import dual_softmax, qb_norm_figures
from dgl_scale.evaluation.retrieval import evaluate_features
from dgl_scale.evaluation.workers import WorkerJob, Workers
from dgl_scale.ray_cluster import ray_cluster


@pytest.fixture(scope="module")
def private_ray() -> Iterator[None]:
    previous = signal.getsignal(signal.SIGTERM)
    with ray_cluster(5):
        yield
    signal.signal(signal.SIGTERM, previous)


def some_features(num_texts: int, num_videos: int) -> Features:
    """Half of few distinct values, so that many scores tie, half at random; video v has caption v and some more."""
    generator = torch.Generator().manual_seed(0)
    target = torch.cat([torch.arange(num_videos), torch.randint(0, num_videos, (num_texts - num_videos,), generator=generator)])
    video = torch.randint(-1, 2, (num_videos, 8), generator=generator) + 0.1
    video[::2] = torch.randn(len(video[::2]), 8, generator=generator)
    text = torch.where(torch.arange(num_texts)[:, None] % 3 == 0, torch.randn(num_texts, 8, generator=generator), video[target].round())
    keys = tuple(f"clip_{i}" for i in range(num_videos))
    return Features(video, text + 0.1, target, torch.zeros(num_texts, 1, dtype=torch.int64), keys, 20.0)


def all_figures(features: Features, evaluation: EvaluationConfig, pairwise: Pairwise) -> tuple[dict[str, Any], Ranking]:
    retrieval = evaluate_features(features, evaluation, twins={}, seed=0, pairwise=pairwise)
    # The texts are their own bank, and their first half validates.
    half = features.video_index < len(features.video) // 2
    validation = LabelledFeatures(features.text[half], features.video[: len(features.video) // 2], features.video_index[half])
    bank = QueryBankConfig(betas=(2.0, 20.0), k=2, theta=2)
    figures = qb_norm_figures(labelled(features), features.text[1:], validation, bank, scale=features.scale, pairwise=pairwise)
    return {**retrieval.figures, "qb_norm": figures}, retrieval.ranking


def assert_equal(one: Ranking, other: Ranking) -> None:
    for direction in ("text_to_video", "video_to_text"):
        for field in fields(DirectionRanks):
            assert torch.equal(*(getattr(getattr(ranking, direction), field.name) for ranking in (one, other)))


@pytest.mark.slow
@pytest.mark.usefixtures("private_ray")
def test_workers_and_cuts_change_no_bit_of_any_figure(tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking_tasks, "_LEAST_ROWS", 100)
    features = some_features(2700, 2100)
    options = {"top_k": 3, "bootstrap_samples": 20}
    here = InProcess(1024)
    expected, ranking = all_figures(features, tiny_config.evaluation.model_copy(update=options), here)
    assert {"mAP", "nDCG"} <= set(expected["video_to_text"])
    sums = here.log_sums(features.text, features.video, scale=20.0)
    softmax = dual_softmax(features.text, features.video, scale=20.0, pairwise=here)
    adjusted = [here.rank(labelled(features), scale=20.0, top_k=top_k, adjust=softmax) for top_k in (1, 4)]
    for num_workers, most_rows, block_size in ((1, 20_480, 77), (2, 1024, 1024), (5, 700, 400)):
        evaluation = tiny_config.evaluation.model_copy(update={**options, "num_workers": num_workers, "block_size": block_size})
        tasks = ByTasks(evaluation, most_rows)
        figures, found = all_figures(features, evaluation, tasks)
        assert figures == expected
        assert_equal(found, ranking)
        assert torch.equal(tasks.log_sums(features.text, features.video, scale=20.0), sums)
        adjust = dual_softmax(features.text, features.video, scale=20.0, pairwise=tasks)
        assert all(torch.equal(one.log_sums, other.log_sums) for one, other in zip(adjust, softmax, strict=True))
        for top_k, expected_ranking in zip((1, 4), adjusted, strict=True):
            assert_equal(tasks.rank(labelled(features), scale=20.0, top_k=top_k, adjust=adjust), expected_ranking)


@pytest.mark.slow
@pytest.mark.usefixtures("private_ray")
def test_tasks_one_of_them_killed_rank_as_one_process_does(tiny_config: RunConfig, kill_workers: Callable[..., int]) -> None:
    config = tiny_config.model_copy(update={"evaluation": tiny_config.evaluation.model_copy(update={"num_workers": 2})})
    features = labelled(some_features(3000, 2000))
    killed, stop = threading.Event(), threading.Event()

    def kill_one() -> None:
        while not stop.wait(0.01) and not killed.is_set():
            if kill_workers(1, "ray::rank captions"):
                killed.set()

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        found = ByTasks(config.evaluation, 300).rank(features, scale=100.0, top_k=4)
    finally:
        stop.set()
        killer.join()
    assert killed.is_set()
    expected = InProcess(1024).rank(features, scale=100.0, top_k=4)
    with closing(Workers(WorkerJob(config, True, "cpu"))) as workers:
        assert_equal(workers.pairwise().rank(features, scale=100.0, top_k=4), expected)
    assert_equal(found, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("private_ray")
def test_an_error_in_a_task_reaches_the_caller_as_what_it_is(tiny_config: RunConfig) -> None:
    tasks = ByTasks(tiny_config.evaluation)
    with pytest.raises(DataError, match="no such part"):
        list(tasks._run("fails", _refuse, torch.zeros(2, 3), torch.zeros(2, 3), "no such part"))


def _refuse(rows: torch.Tensor, start: int, columns: object, message: str) -> None:
    raise DataError(message)


def test_only_large_rankings_go_to_several_workers(tiny_config: RunConfig) -> None:
    two, one = (tiny_config.evaluation.model_copy(update={"num_workers": n}) for n in (2, 1))
    cases = ((30, 20, two), (30_000, 20_000, two), (30_000, 20_000, one))
    assert [is_worth_tasks(*case) for case in cases] == [False, True, False]
