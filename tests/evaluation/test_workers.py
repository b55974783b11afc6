"""Encoding with Ray actors: the same bits for any number of workers, after kills too; nothing left behind."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from dgl_scale.config import RunConfig
from dgl_scale.data.index import load_split
from dgl_scale.data.reader import SampleReader
from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.errors import ConfigError, DataError, DglError
from dgl_scale.evaluation.embedding import build_model_of
from dgl_scale.evaluation.encoding import SplitEncoder
from dgl_scale.evaluation.feature_keys import FeatureKeys
from dgl_scale.evaluation.units import EncodedUnit, Unit, encode_unit, read_unit, split_units
from dgl_scale.evaluation.workers import WorkerJob, Workers, make_tasks
from dgl_scale.ray_cluster import ray_cluster

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("num_units", "num_workers", "expected"), [(1, 3, [1]), (3, 2, [1, 1, 1]), (20, 2, [3] * 6 + [2]), (500, 1, [16] * 31 + [4])]
)
def test_tasks_cover_the_units_in_order(num_units: int, num_workers: int, expected: list[int]) -> None:
    units = split_units("x", num_units, 1)
    tasks = make_tasks(units, num_workers)
    assert [unit for task in tasks for unit in task] == units
    assert [len(task) for task in tasks] == expected


@pytest.fixture(scope="module")
def private_ray() -> Iterator[None]:
    """One cluster for the tests of this file; workers join a connection that is there."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ray_cluster(5):
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler, "a command's own handler is to stay"
        signal.signal(signal.SIGTERM, previous)
        yield


def with_evaluation(config: RunConfig, **values: Any) -> RunConfig:
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=values)})


def ignore(done: int, total: int) -> None:
    """No progress."""


@pytest.fixture
def in_process(tiny_config: RunConfig, tiny_split: Path) -> list[EncodedUnit]:
    """The units as this process encodes them, one after the other."""
    index, tokenizer = load_split(tiny_split), load_tokenizer(tiny_config.model.clip, tiny_config.data.max_words)
    model, reader, threads = build_model_of(tiny_config, frozen=False, device=CPU), SampleReader(index), torch.get_num_threads()
    torch.set_num_threads(1)
    units = split_units(str(tiny_split), index.num_videos, 2)
    read = [read_unit(unit, index, reader, model.image_size, 3, pin_memory=False) for unit in units]
    encoded = [encode_unit(model, tokenizer, one, batch_size=2, dtype=torch.float32, device=CPU) for one in read]
    torch.set_num_threads(threads)
    return encoded


def assert_same(one: Sequence[EncodedUnit], other: Sequence[EncodedUnit]) -> None:
    assert [unit.unit for unit in one] == [unit.unit for unit in other]
    for a, b in zip(one, other, strict=True):
        assert a.video is not None and b.video is not None and torch.equal(a.video, b.video)
        assert a.captions is not None and b.captions is not None
        assert torch.equal(a.captions.features, b.captions.features)
        assert torch.equal(a.captions.tokens, b.captions.tokens)
        assert (a.captions.texts, a.captions.twins) == (b.captions.texts, b.captions.twins)


@pytest.mark.slow
@pytest.mark.usefixtures("private_ray")
def test_three_workers_one_of_them_killed_give_the_bits_of_one_process_and_a_store_that_needs_no_worker(
    tiny_config: RunConfig,
    tiny_split: Path,
    in_process: list[EncodedUnit],
    kill_workers: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        if not sum(killed):
            killed.append(kill_workers(1))

    config = with_evaluation(tiny_config, num_workers=3, feature_store="kept")
    model = build_model_of(config, frozen=False, device=CPU)
    index, tokenizer = load_split(tiny_split), load_tokenizer(config.model.clip, config.data.max_words)
    with closing(SplitEncoder(config, tokenizer, frozen=False, device="cpu", progress=kill_one)) as encoder:
        first = encoder.encode(model, index, str(tiny_split))
        assert sum(killed)
        assert first.encoded == (11, 11)
        assert_same(first.units, in_process)

        (kept,) = (tmp_path / "runs" / "kept").glob(f"*/{FeatureKeys(model, tokenizer, config, 'cpu').frames(first.units[5].unit, index)}*")
        content = bytearray(kept.read_bytes())
        content[-3] ^= 4
        kept.write_bytes(bytes(content))
        second = encoder.encode(model, index, str(tiny_split))
        # One frame's byte costs the frames of its unit, which has one video, and no captions.
        assert second.encoded == (1, 0)
        assert f"{kept} are damaged" in capsys.readouterr().err
        assert_same(second.units, in_process)

    other = with_evaluation(config, num_workers=1, top_k=2, block_size=3)
    with closing(SplitEncoder(other, tokenizer, frozen=False, device="cpu", progress=ignore)) as encoder:
        third = encoder.encode(model, index, str(tiny_split))
    assert third.encoded == (0, 0)
    assert_same(third.units, in_process)


@pytest.mark.slow
@pytest.mark.usefixtures("private_ray")
def test_errors_of_workers_arrive_as_they_are_and_the_next_call_works(tiny_config: RunConfig, tiny_split: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    for file in tiny_split.iterdir():
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes())
    shard = tmp_path / "broken" / "tiny-test-000000.tar"
    content = bytearray(shard.read_bytes())
    content[load_split(tiny_split).offset[4] + 600] ^= 1
    shard.write_bytes(bytes(content))
    workers = Workers(WorkerJob(tiny_config, True, "cpu"))
    with closing(workers):
        with pytest.raises(DataError, match=r"sample clip_04 of shard .* is damaged"):
            list(workers.encode(split_units(str(tmp_path / "broken"), 11, 2), None, {}))
        assert len(list(workers.encode(split_units(str(tiny_split), 11, 2), None, {}))) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("private_ray")
def test_a_worker_that_never_starts_says_what_is_missing(tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def start(**values: Any) -> None:
        with closing(Workers(WorkerJob(with_evaluation(tiny_config, start_timeout_s=1.0, **values), True, "cpu"))) as workers:
            list(workers.encode([Unit("x", 0, 1)], None, {}))

    with pytest.raises(ConfigError, match="needs 64 CPUs and no node of the Ray cluster has more than 5"):
        start(cpus_per_worker=64.0)
    with pytest.raises(ConfigError, match="needs 0.5 GPUs and no node of the Ray cluster has more than 0"):
        start(gpus_per_worker=0.5)
    # A cluster by address may grow, so that nothing is refused before the time is over.
    monkeypatch.setenv("RAY_ADDRESS", "unused: this process is connected")
    with pytest.raises(DglError, match="within evaluation.start_timeout_s 1 s: an evaluation worker needs 64 CPUs and no node"):
        start(cpus_per_worker=64.0)
    holder = ray.remote(num_cpus=4)(threading.Event).remote()
    ray.get(holder.__ray_ready__.remote())
    with pytest.raises(DglError, match="each needs 3 CPUs and 1 are free; wait for others' work"):
        start(cpus_per_worker=3.0)
    ray.kill(holder)


@pytest.mark.slow
@pytest.mark.usefixtures("private_ray")
def test_workers_that_always_die_end_the_evaluation(tiny_config: RunConfig, tiny_split: Path, kill_workers: Callable[..., int]) -> None:
    stop = threading.Event()

    def kill_all() -> None:
        while not stop.wait(0.05):
            kill_workers(9)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        match = "3 evaluation workers died while loading the model"
        with closing(Workers(WorkerJob(tiny_config, True, "cpu"))) as workers, pytest.raises(DglError, match=match):
            list(workers.encode(split_units(str(tiny_split), 11, 2), None, {}))
    finally:
        stop.set()
        killer.join()
