"""Encoding with Ray actors: the same bits for any number of workers, after kills too; nothing left behind."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dgl_scale.config import RunConfig
from dgl_scale.data.index import load_split
from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.errors import CheckpointError, ConfigError, DglError
from dgl_scale.evaluation.embedding import encode_split, load_model
from dgl_scale.evaluation.features import Features, join_features
from dgl_scale.evaluation.workers import EncodingJob, encode_with_workers, slices
from dgl_scale.ray_cluster import ray_cluster


@pytest.mark.parametrize(
    ("num_videos", "batch_size", "num_workers", "expected"),
    [
        (1, 4, 3, [(0, 1)]),
        (9, 4, 2, [(0, 4), (4, 8), (8, 9)]),
        (40, 2, 2, [(0, 6), (6, 12), (12, 18), (18, 24), (24, 30), (30, 36), (36, 40)]),
    ],
)
def test_slices(num_videos: int, batch_size: int, num_workers: int, expected: list[tuple[int, int]]) -> None:
    assert slices(num_videos, batch_size, num_workers) == expected


@pytest.fixture(scope="module")
def private_ray() -> Iterator[None]:
    """One cluster for the tests of this file; `encode_with_workers` joins a connection that is there."""
    with ray_cluster(4):
        yield


def with_workers(config: RunConfig, num_workers: int) -> RunConfig:
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"num_workers": num_workers})})


def assert_same(first: Features, second: Features) -> None:
    assert first.keys == second.keys
    for name in ("video", "text", "video_index", "tokens"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def ignore(done: int, total: int) -> None:
    """No progress."""


@pytest.fixture
def in_process(tiny_config: RunConfig, tiny_split: Path) -> Features:
    index = load_split(tiny_split)
    tokenizer = load_tokenizer(tiny_config.model.clip, tiny_config.data.max_words)
    model = load_model(tiny_config, None, torch.device("cpu"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = encode_split(model, index, tokenizer, start=0, stop=index.num_videos, config=tiny_config, device=torch.device("cpu"))
    torch.set_num_threads(threads)
    return join_features([whole])


@pytest.fixture
def kill_actors(find_descendants: Callable[[int], list[tuple[int, str]]]) -> Callable[[int], int]:
    """`kill_actors(most)`: SIGKILL to at most so many of this cluster's actors, found by the titles that Ray gives its processes."""

    def kill(most: int) -> int:
        pids = [pid for pid, title in find_descendants(os.getpid()) if title.startswith("ray::Encoder")][:most]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    return kill


@pytest.mark.slow
@pytest.mark.usefixtures("private_ray")
def test_three_workers_two_of_them_killed_give_the_bits_of_one_process(
    tiny_config: RunConfig, tiny_split: Path, in_process: Features, kill_actors: Callable[[int], int]
) -> None:
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        if sum(killed) < 2:
            killed.append(kill_actors(1))

    job = EncodingJob(with_workers(tiny_config, 3), None, str(tiny_split), "cpu")
    assert_same(encode_with_workers(job, 11, kill_one), in_process)
    assert sum(killed)


@pytest.mark.slow
@pytest.mark.usefixtures("private_ray")
def test_errors_of_workers_arrive_as_they_are(tiny_config: RunConfig, tiny_split: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match=r"prompts\.safetensors"):
        encode_with_workers(EncodingJob(tiny_config, tmp_path / "prompts.safetensors", str(tiny_split), "cpu"), 11, ignore)
    greedy = tiny_config.model_copy(update={"evaluation": tiny_config.evaluation.model_copy(update={"cpus_per_worker": 64.0})})
    with pytest.raises(ConfigError, match="needs 64 CPUs and the Ray cluster has 4"):
        encode_with_workers(EncodingJob(greedy, None, str(tiny_split), "cpu"), 11, ignore)


@pytest.mark.slow
@pytest.mark.usefixtures("private_ray")
def test_workers_that_always_die_end_the_evaluation(tiny_config: RunConfig, tiny_split: Path, kill_actors: Callable[[int], int]) -> None:
    stop = threading.Event()

    def kill_all() -> None:
        while not stop.wait(0.05):
            kill_actors(9)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pytest.raises(DglError, match="3 evaluation workers died while loading the model"):
            encode_with_workers(EncodingJob(tiny_config, None, str(tiny_split), "cpu"), 11, ignore)
    finally:
        stop.set()
        killer.join()
