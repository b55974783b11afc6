"""Training batches from shards without an index: the same number on every rank, resumable at the granularity of shards."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from dgl_scale.batch import VideoTextBatch
from dgl_scale.config import StreamingConfig
from dgl_scale.data.activity import Activity
from dgl_scale.data.feed import Decoded, Feed
from dgl_scale.data.foreign_samples import read_sample
from dgl_scale.data.frames import choose_frames, decode_frames
from dgl_scale.data.order import rank_places
from dgl_scale.data.stream import RawSample, SampleStream, Source, load_sources
from dgl_scale.data.tokenizer import Tokenizer
from dgl_scale.errors import ConfigError, DataError, DglError
from dgl_scale.files import json_sha256

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Request:
    """The next `size` samples of a stream; where `generation` is new, of one that begins at `first_step`."""

    generation: int
    first_step: int
    size: int


class StreamLoader:
    """The micro-batches of one rank for any range of steps, from a stream.

    What a batch holds depends on seed, world size, workers and on where the run began: going on at step s begins at the
    shard where step s is by the stated numbers of samples. Shards that were begun then are not read to their end.

    Attributes:
        steps_per_epoch: global batches an epoch, by the stated number of samples.
        num_samples: the stated number of samples an epoch.
        digest: of the sources as configured.
        dataset: None, since foreign shards do not tell.
        corrupt: key of each unreadable sample, and name of each unreadable shard, that this rank has met, to its error.
    """

    def __init__(
        self,
        config: StreamingConfig,
        tokenizer: Tokenizer,
        image_size: int,
        *,
        num_frames: int,
        global_batch_size: int,
        micro_batch_size: int | None,
        seed: int,
        rank: int,
        world_size: int,
        num_workers: int,
        train_frames: Literal["random", "uniform"],
        max_corrupt_fraction: float,
        prefetch: int = 2,
        stall_timeout_s: float = 300.0,
    ):
        """Check sizes and addresses; nothing is read yet.

        Raises:
            ConfigError: the batch is larger than an epoch, the world size does not divide it, a source has fewer
                shards than there are reading processes on all ranks, or an address is of an unknown kind.
            DataError: local shards are not there.
        """
        self.corrupt: dict[str, str] = {}
        self.num_samples = config.samples_per_epoch or sum(source.samples for source in config.sources)
        self.steps_per_epoch = self.num_samples // global_batch_size
        if not self.steps_per_epoch:
            raise ConfigError(
                f"global_batch_size {global_batch_size} is larger than the {self.num_samples} samples of an epoch of data.streaming"
            )
        self.dataset: str | None = None
        self.digest = json_sha256([config.model_dump(include={"sources", "samples_per_epoch"}), self.num_samples])
        self._tokenizer = tokenizer
        self._sizes = [places.stop - places.start for places in rank_places(global_batch_size, rank, world_size, micro_batch_size)]
        self._generation = 0
        self._global_batch_size = global_batch_size
        self._sources = sources = load_sources(config)
        streams = world_size * max(1, num_workers)
        _check_streams(sources, streams, world_size)
        self._weights = {name: source.samples_per_shard for source in sources for name in source.shard_names()}
        self._num_lost = 0.0
        self._max_lost = max_corrupt_fraction * self.num_samples
        activity = Activity(num_workers)
        decoder = _StreamDecoder(
            sources,
            image_size,
            num_frames,
            seed=seed,
            first_stream=rank * max(1, num_workers),
            num_streams=streams,
            global_batch_size=global_batch_size,
            shuffle_buffer=config.shuffle_buffer,
            random_frames=train_frames == "random",
            max_lost=self._max_lost,
            activity=activity,
        )
        self._feed = Feed[_Request](
            decoder, activity, num_workers=num_workers, prefetch=prefetch, stall_timeout_s=stall_timeout_s, keep_workers=True
        )

    def position(self, step: int) -> tuple[int, list[int]]:
        """The epoch of a step, and how many shards of each source a run that goes on there leaves behind."""
        return step // self.steps_per_epoch, [source.first_place(step * self._global_batch_size) for source in self._sources]

    def steps(self, start_step: int, stop_step: int) -> Iterator[list[VideoTextBatch]]:
        """This rank's micro-batches of each step in `[start_step, stop_step)`; one such iterator at a time.

        Raises:
            DataError: more than `max_corrupt_fraction` of an epoch's samples cannot be read, or a source fails or stalls.
            DglError: a worker died.
        """
        self._generation += 1
        generation = self._generation
        steps = range(start_step, stop_step)
        if start_step:
            epoch, shards = self.position(start_step)
            _log.info("the stream goes on in epoch %d, after %s shards of its sources", epoch, " and ".join(map(str, shards)))
        batches = self._feed.batches(_Request(generation, start_step, size) for _ in steps for size in self._sizes)
        for _ in steps:
            yield [self._finish(next(batches)) for _ in self._sizes]

    def _finish(self, decoded: Decoded) -> VideoTextBatch:
        for key, error in decoded.skipped.items():
            self._note_corrupt(key, error)
        tokens = self._tokenizer([caption for (caption,) in decoded.captions])
        return decoded.to_batch(tokens, torch.arange(len(decoded.keys)), decoded.keys)

    def _note_corrupt(self, key: str, error: str) -> None:
        if key in self.corrupt:
            return
        _log.warning("skipped %s: %s", key, error)
        self.corrupt[key] = error
        self._num_lost += self._weights.get(key, 1.0)
        if self._num_lost > self._max_lost:
            raise DataError(_too_many(self._num_lost, self._max_lost, key, error))


class _StreamDecoder(Dataset[Decoded]):
    """The next samples of this process's stream to pixels and captions; lives in the workers."""

    def __init__(
        self,
        sources: list[Source],
        image_size: int,
        num_frames: int,
        *,
        seed: int,
        first_stream: int,
        num_streams: int,
        global_batch_size: int,
        shuffle_buffer: int,
        random_frames: bool,
        max_lost: float,
        activity: Activity,
    ):
        self._sources = sources
        self._image_size = image_size
        self._num_frames = num_frames
        self._seed = seed
        self._first_stream = first_stream
        self._num_streams = num_streams
        self._global_batch_size = global_batch_size
        self._shuffle_buffer = shuffle_buffer
        self._random_frames = random_frames
        self._max_lost = max_lost
        self._activity = activity
        self._weights = {name: source.samples_per_shard for source in sources for name in source.shard_names()}
        self._generation = 0
        self._skipped: dict[str, str] = {}
        self._stream: SampleStream
        self._samples: Iterator[RawSample]

    def __getitem__(self, request: _Request) -> Decoded:
        if request.generation != self._generation:
            self._begin(request)
        frames = np.empty((request.size, self._num_frames, 3, self._image_size, self._image_size), dtype=np.uint8)
        keys: list[str] = []
        captions: list[list[str]] = []
        failure = None
        self._skipped.clear()
        try:
            while len(keys) < request.size:
                self._take(frames[len(keys)], keys, captions)
        except DglError as error:
            failure = str(error)
        self._activity.idle()
        return Decoded(torch.from_numpy(frames), keys, captions, skipped=dict(self._skipped), failure=failure)

    def _begin(self, request: _Request) -> None:
        worker = get_worker_info()
        self._generation = request.generation
        self._stream = SampleStream(
            self._sources,
            seed=self._seed,
            stream=self._first_stream + (worker.id if worker else 0),
            num_streams=self._num_streams,
            samples_before=request.first_step * self._global_batch_size,
            shuffle_buffer=self._shuffle_buffer,
            on_bad_shard=self._skip,
            note=self._activity.note,
        )
        self._samples = iter(self._stream)

    def _take(self, out: np.ndarray, keys: list[str], captions: list[list[str]]) -> None:
        sample = next(self._samples)
        rng = self._stream.rng
        try:
            jpegs, texts = read_sample(sample.members)
            frame_rng = np.random.Generator(np.random.PCG64(rng.getrandbits(64))) if self._random_frames else None
            decode_frames(jpegs, choose_frames(len(jpegs), self._num_frames, rng=frame_rng), self._image_size, out)
        except DataError as error:
            self._skip(f"sample {sample.key} of shard {sample.shard}", str(error))
            return
        keys.append(sample.key)
        captions.append([rng.choice(texts)])

    def _skip(self, key: str, error: str) -> None:
        self._skipped[key] = error
        lost = sum(self._weights.get(name, 1.0) for name in self._skipped)
        if lost > self._max_lost:
            # Nobody else would see it if no sample of a batch could be read.
            raise DataError(_too_many(lost, self._max_lost, key, error))


def _too_many(lost: float, allowed: float, key: str, error: str) -> str:
    return (
        f"about {lost:.0f} samples of data.streaming cannot be read, more than data.max_corrupt_fraction allows an epoch "
        f"({allowed:.0f}); the latest: {key}: {error}"
    )


def _check_streams(sources: list[Source], num_streams: int, world_size: int) -> None:
    for number, source in enumerate(sources):
        if len(source.shards) < num_streams:
            workers = len(source.shards) // world_size
            advice = f"set data.num_workers to at most {workers}" if workers else "write more, smaller shards"
            raise ConfigError(
                f"data.streaming.sources[{number}] has {len(source.shards)} shards for {num_streams} reading processes on "
                f"{world_size} ranks; each needs one of its own, so {advice}"
            )
