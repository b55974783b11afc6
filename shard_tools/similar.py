"""Pairs of similar videos among many, without comparing all with all.

Locality-sensitive hashing (Indyk and Motwani, 1998): in each of several tables a frame's key is some of its hash's bits,
and only frames with equal keys are candidates. As many bits as the number of frames needs (log2), so tables cost
O(n log n) and a frame meets few strangers; a near-duplicate meets its original in some table through some of its frames.
"""

from collections.abc import Iterator

import numpy as np

from shard_tools.fingerprints import HASH_BITS, Hashes

_TABLES = 12
_MIN_KEY_BITS, _MAX_KEY_BITS = 10, 30
# A frame that very many share (a logo on white) tells nothing: half of a video's frames must match, and others find it.
_MAX_EQUAL = 512
# Of a key's frames each is compared with so many that follow it, so that cost stays linear.
_MAX_NEIGHBOURS = 24
_BLOCK_PAIRS = 1 << 16
_SEED = 0


def similar_pairs(hashes: Hashes, others: Hashes | None, max_distance: int, min_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of videos that share frames.

    A frame is shared if the other video has one at a Hamming distance of at most `max_distance`; the
    share of a pair is that of the video which shares less.

    Args:
        hashes: [V, F] of the videos; 0 where a frame has no pattern.
        others: [V, F] a second form of the same videos (mirrored) that matches too; None: no such form.
        max_distance: in bits of 63.
        min_share: 0 to 1, of the frames that have a pattern.

    Returns:
        int64 [P, 2], the pairs (i < j), sorted; float64 [P], their shares.
    """
    forms = hashes if others is None else np.concatenate([hashes, others])
    num_videos = len(hashes)
    frame_video, frame = np.repeat(np.arange(len(forms)), hashes.shape[1]), forms.ravel()
    known = frame != 0
    shares: dict[tuple[int, int], float] = {}
    for pairs in _candidates(frame[known], frame_video[known]):
        # A pair of forms, the first one as it is: mirrored with mirrored says nothing new.
        pairs = pairs[pairs[:, 0] < num_videos]
        pairs = pairs[pairs[:, 0] != pairs[:, 1] % num_videos]
        share = _shares(forms[pairs[:, 0]], forms[pairs[:, 1]], max_distance)
        for (one, other), value in zip(pairs[share >= min_share] % num_videos, share[share >= min_share], strict=True):
            pair = (int(min(one, other)), int(max(one, other)))
            shares[pair] = max(float(value), shares.get(pair, 0.0))
    ordered = sorted(shares)
    return np.array(ordered, dtype=np.int64).reshape(-1, 2), np.array([shares[pair] for pair in ordered])


def _candidates(frames: Hashes, video: np.ndarray) -> Iterator[np.ndarray]:
    """[n, 2] pairs of videos with a frame of equal key, in blocks; a pair comes in more than one block."""
    bits = int(np.clip(np.ceil(np.log2(max(len(frames), 2))), _MIN_KEY_BITS, _MAX_KEY_BITS))
    rng = np.random.Generator(np.random.PCG64(_SEED))
    # Bit 0 of a hash is always set.
    tables = [rng.choice(HASH_BITS, size=bits, replace=False) + 1 for _ in range(_TABLES)]
    for table in tables:
        mask = np.bitwise_or.reduce(np.uint64(1) << table.astype(np.uint64))
        keys = frames & mask
        # Within a key by the whole hash, so that the nearest are neighbours.
        order = np.lexsort((frames, keys))
        keys, ordered = _drop_common(keys[order], video[order])
        found = [_distinct(ordered[:-step][same], ordered[step:][same]) for step, same in _equal_keys(keys)]
        pairs = np.unique(np.concatenate([*found, np.empty((0, 2), dtype=np.int64)]), axis=0)
        for start in range(0, len(pairs), _BLOCK_PAIRS):
            yield pairs[start : start + _BLOCK_PAIRS]


def _drop_common(keys: Hashes, video: np.ndarray) -> tuple[Hashes, np.ndarray]:
    _, counts = np.unique(keys, return_counts=True)
    kept = np.repeat(counts <= _MAX_EQUAL, counts)
    return keys[kept], video[kept]


def _equal_keys(keys: Hashes) -> Iterator[tuple[int, np.ndarray]]:
    for step in range(1, min(_MAX_NEIGHBOURS, len(keys) - 1) + 1):
        same = keys[:-step] == keys[step:]
        if not same.any():
            return
        yield step, same


def _distinct(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    pairs = np.stack([np.minimum(one, other), np.maximum(one, other)], axis=1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


def _shares(one: Hashes, other: Hashes, max_distance: int) -> np.ndarray:
    """[n] of [n, F] and [n, F]: the smaller of both videos' shares of shared frames."""
    distance = _count_bits(one[:, :, None] ^ other[:, None, :])  # [n, F, F]
    known_one, known_other = one != 0, other != 0
    near = (distance <= max_distance) & known_one[:, :, None] & known_other[:, None, :]
    of_one = near.any(axis=2).sum(axis=1) / np.maximum(known_one.sum(axis=1), 1)
    of_other = near.any(axis=1).sum(axis=1) / np.maximum(known_other.sum(axis=1), 1)
    return np.asarray(np.minimum(of_one, of_other))


def _count_bits(values: Hashes) -> np.ndarray:
    return np.asarray(_BITS_OF_16[np.ascontiguousarray(values)[..., None].view(np.uint16)].sum(axis=-1))


_BITS_OF_16 = np.array([value.bit_count() for value in range(1 << 16)], dtype=np.uint8)
