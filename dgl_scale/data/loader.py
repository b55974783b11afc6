"""Batches of frames and tokens: training steps that depend on shards, seed and step only, and evaluation in order.

Reading, hashing and JPEG decoding happen in worker processes, which get the places of samples and know no
index; order, replacement of unreadable samples and tokenising (0.1 ms a caption) stay in this process. So workers
are small and start without open_clip and pyarrow.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from dgl_scale.batch import VideoTextBatch
from dgl_scale.config import CacheConfig
from dgl_scale.data.activity import Activity
from dgl_scale.data.feed import Decoded, Feed
from dgl_scale.data.frames import choose_frames, decode_frames
from dgl_scale.data.index import SplitIndex
from dgl_scale.data.location import Location, RemoteShard, dataset_name
from dgl_scale.data.order import EpochOrder, LastBatch, rank_places, replacements
from dgl_scale.data.reader import ShardFiles
from dgl_scale.data.tokenizer import Tokenizer
from dgl_scale.errors import ConfigError, DataError, DglError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Clip:
    """A video to decode.

    Attributes:
        caption: which of its captions is wanted; None: all.
        frame_seed: of the random choice of frames; None: uniform frames.
    """

    location: Location
    caption: int | None
    frame_seed: tuple[int, ...] | None


class TrainLoader:
    """The micro-batches of one rank for any range of steps.

    Step s is batch `s % steps_per_epoch` of epoch `s // steps_per_epoch`; its pairs, frames and tokens depend on
    shards, seed, s and the global batch size only: never on world size, micro-batch, workers, or where the run began.
    A sample that cannot be read is replaced by another (`order.replacements`), and named in the log.

    Attributes:
        steps_per_epoch: global batches an epoch.
        num_samples: readable videos of the split.
        digest: of the split and of what is excluded.
        dataset: what the split is of, by its shards' names; None where they do not tell.
        corrupt: key and error of each unreadable sample that this rank has met.
    """

    def __init__(
        self,
        index: SplitIndex,
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
        last_batch: LastBatch,
        max_corrupt_fraction: float,
        prefetch: int = 2,
        stall_timeout_s: float = 300.0,
    ):
        """Check the sizes; workers start with the first step and live as long as the loader.

        Raises:
            ConfigError: the batch is larger than the split, the world size does not divide it, or the cache
                cannot hold the shards of a remote split.
        """
        _check_cache(index)
        short = int((index.num_frames < num_frames).sum())
        if short and rank == 0:
            message = "%d of %d videos have fewer than model.num_frames %d frames stored; their last frame is repeated"
            _log.warning(message, short, index.num_videos, num_frames)
        self.corrupt: dict[str, str] = {}
        self.num_samples, self.digest = index.num_videos, index.digest
        self.dataset = dataset_name(index.shards[0])
        self._index = index
        self._tokenizer = tokenizer
        self._order = EpochOrder(index.num_captions, seed, global_batch_size, last_batch)
        self.steps_per_epoch = self._order.steps_per_epoch
        self._places = rank_places(global_batch_size, rank, world_size, micro_batch_size)
        self._random_frames = train_frames == "random"
        self._max_corrupt_fraction = max_corrupt_fraction
        activity = Activity(num_workers)
        self._decoder = _Decoder(image_size, num_frames, index.cache, activity)
        self._feed = Feed[list[_Clip]](
            self._decoder, activity, num_workers=num_workers, prefetch=prefetch, stall_timeout_s=stall_timeout_s, keep_workers=True
        )

    def steps(self, start_step: int, stop_step: int) -> Iterator[list[VideoTextBatch]]:
        """This rank's micro-batches of each step in `[start_step, stop_step)`.

        A loader serves one such iterator at a time; a new one ends the one before.

        Raises:
            DataError: more than `max_corrupt_fraction` of the samples cannot be read, or the source of a remote split
                fails or stalls.
            DglError: a worker died.
        """
        steps = range(start_step, stop_step)
        batches = self._feed.batches(self._request(step, places) for step in steps for places in self._places)
        for step in steps:
            yield [self._finish(step, places, next(batches)) for places in self._places]

    def _request(self, step: int, places: slice) -> list[_Clip]:
        epoch, batch = divmod(step, self.steps_per_epoch)
        return [self._clip(epoch, video, caption) for video, caption in self._order.batches(epoch)[batch, places].tolist()]

    def _clip(self, epoch: int, video: int, caption: int) -> _Clip:
        # By what is shown and when, not by who reads it: the same frames on any worker of any rank.
        frame_seed = (self._order.seed, epoch, video, caption) if self._random_frames else None
        return _Clip(self._index.locate(video), caption, frame_seed)

    def _finish(self, step: int, places: slice, decoded: Decoded) -> VideoTextBatch:
        keys, captions = list(decoded.keys), list(decoded.captions)
        for row, error in decoded.errors.items():
            self._note_corrupt(keys[row], error)
            keys[row], captions[row] = self._replace(step, places.start + row, decoded.frames[row].numpy())
        tokens = self._tokenizer([caption for (caption,) in captions])
        return decoded.to_batch(tokens, torch.arange(len(keys)), keys)

    def _replace(self, step: int, place: int, out: npt.NDArray[np.uint8]) -> tuple[str, list[str]]:
        epoch, batch = divmod(step, self.steps_per_epoch)
        for video, caption in replacements(self._order.batches(epoch), batch, place):
            clip = self._clip(epoch, video, caption)
            try:
                return clip.location.key, self._feed.call(partial(self._decoder.decode, clip, out))
            except DataError as error:
                self._note_corrupt(clip.location.key, str(error))
        raise DataError(f"step {step}: no readable sample of {self._index.folder} is left to replace an unreadable one")

    def _note_corrupt(self, key: str, error: str) -> None:
        if key in self.corrupt:
            return
        _log.warning("skipped a sample: %s", error)
        self.corrupt[key] = error
        count, total = len(self.corrupt), self._index.num_videos
        if count > self._max_corrupt_fraction * total:
            raise DataError(
                f"{count} of {total} samples of {self._index.folder} cannot be read, more than "
                f"data.max_corrupt_fraction {self._max_corrupt_fraction}; the latest: {error}"
            )


def _check_cache(index: SplitIndex) -> None:
    """Training reads at random: with a cache for a part of the shards it would fetch one for nearly every sample."""
    total = sum(shard.size for shard in index.shards if isinstance(shard, RemoteShard)) / 2**30
    if index.cache and total > index.cache.max_gib:
        raise ConfigError(
            f"the shards of {index.folder} have {total:.1f} GiB and data.cache.max_gib is {index.cache.max_gib:g}; raise it, "
            "or set data.cache to null to fetch single samples"
        )


def evaluation_batches(
    index: SplitIndex,
    tokenizer: Tokenizer,
    image_size: int,
    num_frames: int,
    *,
    start: int,
    stop: int,
    batch_size: int,
    num_workers: int,
    stall_timeout_s: float = 300.0,
) -> Iterator[VideoTextBatch]:
    """Videos `[start, stop)` of the index, each once and in order, with all their captions and uniform frames.

    Raises:
        DataError: a sample cannot be read; retrieval among a part of the videos would be another task.
    """
    activity = Activity(num_workers)
    decoder = _Decoder(image_size, num_frames, index.cache, activity)
    feed = Feed[list[_Clip]](decoder, activity, num_workers=num_workers, prefetch=2, stall_timeout_s=stall_timeout_s, keep_workers=False)
    requests = (
        [_Clip(index.locate(i), None, None) for i in range(first, min(first + batch_size, stop))]
        for first in range(start, stop, batch_size)
    )
    for decoded in feed.batches(requests):
        if decoded.errors:
            raise DataError(next(iter(decoded.errors.values())))
        tokens = tokenizer([caption for captions in decoded.captions for caption in captions])
        video_index = [row for row, captions in enumerate(decoded.captions) for _ in captions]
        yield decoded.to_batch(tokens, torch.tensor(video_index, dtype=torch.int64), decoded.keys)


class _Decoder(Dataset[Decoded]):
    """Clips to pixels and captions; lives in the workers."""

    def __init__(self, image_size: int, num_frames: int, cache: CacheConfig | None, activity: Activity):
        self._image_size = image_size
        self._num_frames = num_frames
        self._activity = activity
        self._files = ShardFiles(cache, activity.note)

    def __getitem__(self, clips: list[_Clip]) -> Decoded:
        frames = np.empty((len(clips), self._num_frames, 3, self._image_size, self._image_size), dtype=np.uint8)
        captions: list[list[str]] = []
        errors: dict[int, str] = {}
        failure = None
        for row, clip in enumerate(clips):
            try:
                captions.append(self.decode(clip, frames[row]))
            except DataError as error:
                captions.append([])
                errors[row] = str(error)
            except DglError as error:
                # A server that is gone, a full disk: no other sample would fare better.
                failure = str(error)
                break
        self._activity.idle()
        return Decoded(torch.from_numpy(frames), [clip.location.key for clip in clips], captions, errors, failure=failure)

    def decode(self, clip: _Clip, out: npt.NDArray[np.uint8]) -> list[str]:
        """Fill `out [T, 3, H, W]`; returns the wanted captions. DataError if the sample cannot be read."""
        sample = self._files.read(clip.location)
        captions = sample.metadata.captions
        if clip.caption is not None and clip.caption >= len(captions):
            raise DataError(f"sample {sample.key} has {len(captions)} captions, its index says more; build the shards again")
        rng = None if clip.frame_seed is None else np.random.Generator(np.random.PCG64(np.random.SeedSequence(clip.frame_seed)))
        chosen = choose_frames(len(sample.frames), self._num_frames, rng=rng)
        try:
            decode_frames(sample.frames, chosen, self._image_size, out)
        except DataError as error:
            raise DataError(f"sample {sample.key} of shard {clip.location.shard}: {error}") from error
        return captions if clip.caption is None else [captions[clip.caption]]
