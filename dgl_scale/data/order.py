"""Which (video, caption) pairs make up batch k of epoch e: pure functions of sizes and seed.

No function here knows of workers, files or torch. World size and micro-batch size only cut a global
batch into pieces; they never change what is in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt

from dgl_scale.errors import ConfigError

LastBatch = Literal["drop", "wrap"]
IntArray = npt.NDArray[np.int64]


def steps_per_epoch(num_pairs: int, global_batch_size: int, last_batch: LastBatch) -> int:
    """Number of global batches in an epoch of `num_pairs` (video, caption) pairs.

    Raises:
        ConfigError: there are fewer pairs than one batch holds.
    """
    if num_pairs < global_batch_size:
        raise ConfigError(
            f"global_batch_size {global_batch_size} is larger than the {num_pairs} pairs of the split; choose at most {num_pairs}"
        )
    whole, rest = divmod(num_pairs, global_batch_size)
    return whole + (1 if rest and last_batch == "wrap" else 0)


def epoch_batches(num_captions: IntArray, seed: int, epoch: int, global_batch_size: int, last_batch: LastBatch) -> IntArray:
    """All batches of an epoch, int64 `[num_batches, global_batch_size, 2]` of (video, caption).

    Every pair occurs exactly once; `drop` leaves out the last partial batch, `wrap` fills it from the
    epoch's start. A batch holds a video twice only when nothing but its own videos is left, which
    cannot happen as long as no video has more captions than the epoch has whole batches.

    The captions of a video are spread evenly over the epoch, each at a random place of its share, so
    that two epochs, or two passes over the videos within one, never repeat a batch.

    Args:
        num_captions: int64 `[V]`, captions of each video; videos with none are left out.

    Raises:
        ConfigError: as `steps_per_epoch`.
    """
    num_captions = np.asarray(num_captions, dtype=np.int64)
    num_pairs = int(num_captions.sum())
    num_batches = steps_per_epoch(num_pairs, global_batch_size, last_batch)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    video = np.repeat(np.arange(len(num_captions)), num_captions)
    caption = np.arange(num_pairs) - np.repeat(np.cumsum(num_captions) - num_captions, num_captions)
    place = (caption + rng.random(num_pairs)) / np.repeat(num_captions, num_captions)
    wanted = video[np.argsort(place, kind="stable")]
    videos = wanted if num_captions.max() == 1 else _without_repeats(wanted, num_captions, global_batch_size, rng)
    # The n-th time a video is taken it brings the n-th of its shuffled captions.
    shuffled = np.lexsort((rng.random(num_pairs), video))
    pairs = np.empty((num_pairs, 2), dtype=np.int64)
    pairs[:, 0] = videos
    pairs[np.argsort(videos, kind="stable"), 1] = caption[shuffled]
    missing = num_batches * global_batch_size - num_pairs
    if missing > 0:
        pairs = np.concatenate([pairs, _filling(pairs, num_pairs % global_batch_size, missing)])
    return pairs[: num_batches * global_batch_size].reshape(num_batches, global_batch_size, 2)


def rank_places(global_batch_size: int, rank: int, world_size: int, micro_batch_size: int | None) -> list[slice]:
    """Places in a global batch of each micro-batch of `rank`: contiguous, the last one may be shorter.

    Args:
        micro_batch_size: at most so many pairs at once; None: the rank's whole share.

    Raises:
        ConfigError: `world_size` does not divide `global_batch_size`.
    """
    share, rest = divmod(global_batch_size, world_size)
    if rest or not share:
        sizes = [size for size in (share * world_size, (share + 1) * world_size) if size]
        worlds = [n for n in range(1, min(global_batch_size, 2 * world_size) + 1) if global_batch_size % n == 0]
        below, above = [n for n in worlds if n < world_size][-1:], [n for n in worlds if n > world_size][:1]
        raise ConfigError(
            f"global_batch_size {global_batch_size} cannot be shared equally by {world_size} ranks; "
            f"use a batch of {_either(sizes)}, or {_either(below + above)} ranks"
        )
    micro = min(micro_batch_size or share, share)
    first = rank * share
    return [slice(first + start, first + min(start + micro, share)) for start in range(0, share, micro)]


def rank_slice(batch: IntArray, rank: int, world_size: int, micro_batch_size: int | None) -> list[IntArray]:
    """The micro-batches of `rank`, int64 `[b, 2]` each; over ranks and micro-batches they join to `batch`.

    Raises:
        ConfigError: as `rank_places`.
    """
    return [batch[places] for places in rank_places(len(batch), rank, world_size, micro_batch_size)]


def replacements(batches: IntArray, batch: int, place: int) -> Iterator[tuple[int, int]]:
    """Pairs that may stand in for an unreadable one, best first.

    Those of the following batches, round the epoch, whose video is not in this batch: first at the same
    place, then at the next places. At last the rest of the batch itself. Two places of a batch so begin
    with different pairs, and ranks need not talk to each other to choose different ones.
    """
    num_batches, size, _ = batches.shape
    present = set(batches[batch, :, 0].tolist())
    for shift in range(size):
        for step in range(1, num_batches):
            video, caption = batches[(batch + step) % num_batches, (place + shift) % size].tolist()
            if video not in present:
                yield video, caption
    for shift in range(1, size):
        video, caption = batches[batch, (place + shift) % size].tolist()
        yield video, caption


@dataclass
class EpochOrder:
    """The batches of every epoch of a run; remembers the epoch last asked for.

    Attributes:
        num_captions: int64 `[V]`, as for `epoch_batches`.
    """

    num_captions: IntArray
    seed: int
    global_batch_size: int
    last_batch: LastBatch
    _epoch: int | None = field(default=None, init=False)
    _batches: IntArray = field(default_factory=lambda: np.empty((0, 0, 2), dtype=np.int64), init=False)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches an epoch; ConfigError if there is not even one."""
        return steps_per_epoch(int(self.num_captions.sum()), self.global_batch_size, self.last_batch)

    def batches(self, epoch: int) -> IntArray:
        """`epoch_batches` of this epoch."""
        if epoch != self._epoch:
            self._batches = epoch_batches(self.num_captions, self.seed, epoch, self.global_batch_size, self.last_batch)
            self._epoch = epoch
        return self._batches


def _without_repeats(wanted: IntArray, num_captions: IntArray, size: int, rng: np.random.Generator) -> IntArray:
    """`wanted` reordered as little as needed, so that runs of `size` hold no video twice if avoidable.

    A video that the batch has already waits for the next one. A video with as many captions left as
    there are whole batches left is due: it goes into every batch from then on. (Taking what is due,
    most captions first, keeps the rest feasible, as in McNaughton's rule for preemptive scheduling, 1959.)
    """
    remaining = num_captions.copy()
    lot = rng.permutation(len(num_captions))  # Among equals chance decides, or a dropped last batch would favour some.
    most = int(remaining.max())
    upcoming = iter(wanted.tolist())
    waiting: dict[int, int] = {}  # video -> how often it was passed over
    ahead: dict[int, int] = {}  # video -> how often it was taken before its turn
    order: list[int] = []
    for start in range(0, len(wanted), size):
        room = min(size, len(wanted) - start)
        enough = max((len(wanted) - start) // size, 2)
        # Looking for due videos costs O(V), so only where there can be any.
        batch = _due(remaining, enough, room, lot) if enough <= most else []
        for video in batch:
            if not _take_one(waiting, video):
                ahead[video] = ahead.get(video, 0) + 1
        _fill(batch, room, waiting, ahead, upcoming)
        np.subtract.at(remaining, batch, 1)
        order.extend(batch)
    return np.array(order, dtype=np.int64)


def _due(remaining: IntArray, enough: int, room: int, lot: IntArray) -> list[int]:
    due = np.flatnonzero(remaining >= enough)
    chosen: list[int] = due[np.lexsort((lot[due], -remaining[due]))][:room].tolist()
    return chosen


def _fill(batch: list[int], room: int, waiting: dict[int, int], ahead: dict[int, int], upcoming: Iterator[int]) -> None:
    present = set(batch)
    for video in list(islice(waiting, room + len(batch))):
        if len(batch) == room:
            return
        if video not in present:
            _take_one(waiting, video)
            present.add(video)
            batch.append(video)
    while len(batch) < room and (video := next(upcoming, -1)) >= 0:
        if _take_one(ahead, video):
            continue
        if video in present:
            waiting[video] = waiting.get(video, 0) + 1
            continue
        present.add(video)
        batch.append(video)
    while len(batch) < room:
        for video in list(waiting)[: room - len(batch)]:
            _take_one(waiting, video)
            batch.append(video)


def _take_one(counts: dict[int, int], video: int) -> bool:
    count = counts.get(video)
    if count is None:
        return False
    if count == 1:
        del counts[video]
    else:
        counts[video] = count - 1
    return True


def _filling(pairs: IntArray, num_last: int, missing: int) -> IntArray:
    """`missing` pairs from the epoch's start for its last batch of `num_last`, new videos first."""
    present = set(pairs[len(pairs) - num_last :, 0].tolist())
    chosen: list[int] = []
    passed: list[int] = []
    for i, video in enumerate(pairs[: len(pairs) - num_last, 0].tolist()):
        if len(chosen) == missing:
            break
        (passed if video in present else chosen).append(i)
        present.add(video)
    return pairs[(chosen + passed)[:missing]]


def _either(values: list[int]) -> str:
    return " or ".join(str(value) for value in values)
